//! The statements of an ordinary JPA/Hibernate application, of pgbench, and of the payment core.

use super::check;

#[test]
fn hibernate() {
    check(&[
        (
            "select c1_0.tenant_id,c1_0.id,c1_0.email,c1_0.manager_id,c1_0.name from customer c1_0 where (c1_0.tenant_id,c1_0.id) in (($1,$2))",
            "key $1 r",
        ),
        ("select c1_0.id,c1_0.email from customer c1_0 where c1_0.tenant_id=$1 and c1_0.id=$2", "key $1 r"),
        (
            "select c.id from customer c left join customer m on m.tenant_id=c.tenant_id and m.id=c.manager_id where c.tenant_id=$1 and lower(c.name) like $2 escape ''",
            "key $1 r",
        ),
        (
            "select o1_0.id,i1_0.order_id,i1_0.id,p1_0.name from orders o1_0 left join order_item i1_0 on o1_0.tenant_id=i1_0.tenant_id and o1_0.id=i1_0.order_id left join product p1_0 on p1_0.tenant_id=i1_0.tenant_id and p1_0.id=i1_0.product_id where o1_0.tenant_id=$1 and o1_0.id=$2",
            "key $1 r",
        ),
        (
            "select o1_0.id from orders o1_0 where o1_0.tenant_id=$1 order by o1_0.id desc offset $2 rows fetch first $3 rows only",
            "key $1 r",
        ),
        (
            "select count(o1_0.id) from orders o1_0 where o1_0.tenant_id=$1 and o1_0.status in ($2,$3)",
            "key $1 r",
        ),
        (
            "select o1_0.id from orders o1_0 where o1_0.tenant_id=$1 and exists(select 1 from order_item i1_0 where i1_0.tenant_id=o1_0.tenant_id and i1_0.order_id=o1_0.id and i1_0.quantity>$2)",
            "key $1 r",
        ),
        (
            "select o1_0.id,(select sum(i.quantity*p.price) from order_item i join product p on p.tenant_id=i.tenant_id and p.id=i.product_id where i.tenant_id=o1_0.tenant_id and i.order_id=o1_0.id) from orders o1_0 where o1_0.tenant_id=$1",
            "key $1 r",
        ),
        (
            "select case when count(*)>0 then true else false end from customer c1_0 where c1_0.tenant_id=$1 and c1_0.email=$2",
            "key $1 r",
        ),
        ("select o1_0.id from orders o1_0 where o1_0.id=$1", "each r"),
        (
            "insert into orders (customer_id,status,total,version,tenant_id,id) values ($1,$2,$3,$4,$5,$6)",
            "key $5 w",
        ),
        (
            "insert into orders (customer_id,status,total,version,tenant_id,id) values ($1,$2,$3,$4,$5,$6) RETURNING *",
            "key $5 w",
        ),
        ("insert into order_item (tenant_id,id,order_id) values ($1,$2,$3),($4,$5,$6)", "split $1, $4 w"),
        ("insert into order_item (tenant_id,id,order_id) values ($1,$2,$3),($1,$5,$6)", "key $1 w"),
        (
            "update orders set status=$1,total=$2,version=$3 where tenant_id=$4 and id=$5 and version=$6",
            "key $4 w",
        ),
        ("update orders set status=$1,tenant_id=$2 where tenant_id=$3 and id=$4", "key $2, $3 w"),
        (
            "update orders o set status=o.status||'x', total=(select sum(i.quantity) from order_item i where i.tenant_id=o.tenant_id and i.order_id=o.id) where o.tenant_id=$1",
            "key $1 w",
        ),
        ("delete from orders where tenant_id=$1 and id=$2 and version=$3", "key $1 w"),
        (
            "delete from order_item using orders where order_item.tenant_id=orders.tenant_id and orders.tenant_id=$1 and orders.status='x'",
            "key $1 w",
        ),
        ("select nextval('orders_seq')", "default w"),
        ("select 1", "any r"),
        ("select id from orders where tenant_id=$1 and id=$2 for update", "key $1 w"),
        ("select id from orders where tenant_id=$1 and id=$2 for no key update nowait", "key $1 w"),
        (
            "with recursive up as (select tenant_id,id,manager_id from customer where tenant_id=$1 and id=$2 union all select c.tenant_id,c.id,c.manager_id from customer c join up on c.tenant_id=up.tenant_id and c.id=up.manager_id) select id from up",
            "key $1 r",
        ),
        (
            "select r.id,r.n from (select o.id,row_number() over(partition by o.customer_id order by o.id) n from orders o where o.tenant_id=$1) r where r.n=1",
            "key $1 r",
        ),
        (
            "insert into product (tenant_id,id,name) values ($1,$2,$3) on conflict (tenant_id,id) do update set name=excluded.name, tenant_id=excluded.tenant_id",
            "key $1 w",
        ),
        (
            "insert into product (tenant_id,id,name) values ($1,$2,$3) on conflict (id) do nothing",
            "refuse 0A000",
        ),
        ("insert into product (tenant_id,id,name) values ($1,$2,$3) on conflict do nothing", "key $1 w"),
        (
            "merge into product p using (values ($1::uuid,$2::int8,$3::text)) s(t,i,n) on p.tenant_id=s.t and p.id=s.i when matched then update set name=s.n when not matched then insert (tenant_id,id,name) values (s.t,s.i,s.n)",
            "key $1 w",
        ),
        (
            "merge into product p using customer s on p.tenant_id=s.tenant_id and p.id=s.id when matched then delete",
            "apply w",
        ),
        (
            "merge into product p using customer s on p.tenant_id=$1 and p.id=s.id when matched then delete",
            "apply w",
        ),
        (
            "merge into product p using (select * from customer where tenant_id=$1) s on p.tenant_id=s.tenant_id and p.id=s.id when not matched then insert (tenant_id,id) values ($2,s.id)",
            "key $2, $1 w",
        ),
    ]);
}

#[test]
fn writes_between_tables_stay_with_their_key() {
    check(&[
        ("INSERT INTO t VALUES (1, 2, 'a')", "key #0 w"),
        ("INSERT INTO t (x, k) VALUES (1, '2')", "key #1 w"),
        ("INSERT INTO t (k) VALUES (1), (2), (3)", "split #0, #1, #2 w"),
        ("INSERT INTO t (k, x) VALUES ($1, (SELECT max(x) FROM t2 WHERE k = $1))", "key $1 w"),
        ("INSERT INTO t (k, x) VALUES (1, (SELECT max(x) FROM t2 WHERE k = 1)), (2, 3)", "key [#0 #2], #1 w"),
        ("INSERT INTO t (k, x) VALUES (1, nextval('s'))", "apply w"),
        ("INSERT INTO t (k, x) VALUES ($1 + 1, 1)", "apply w"),
        ("INSERT INTO t SELECT * FROM t2 WHERE k = 5", "key #0 w"),
        ("INSERT INTO t (k, x) SELECT 5, x FROM t2 WHERE k = 5", "key #0, #1 w"),
        ("INSERT INTO t (k, x) SELECT $1, x FROM t2 WHERE k = $1", "key $1 w"),
        ("INSERT INTO t (k, x) SELECT x, k FROM t2 WHERE k = 5", "apply w"),
        ("INSERT INTO t (k, x) SELECT $1::int8, exponent FROM currencies", "key $1 w"),
        (
            "INSERT INTO t (k, x) SELECT u.k, u.x FROM unnest($1::int8[], $2::int4[]) AS u (k, x)",
            "key any $1 w",
        ),
        ("INSERT INTO t (k, x) SELECT * FROM unnest($1::int8[], $2::int4[])", "key any $1 w"),
        ("INSERT INTO t (k) SELECT generate_series(1, 10)", "apply w"),
        ("INSERT INTO t (k, x) SELECT 1, 2 UNION ALL SELECT 3, 4", "key [#0 #2] w"),
        (
            "INSERT INTO t (k, x) SELECT k, x FROM t2 WHERE k = 1 UNION ALL SELECT k, x FROM t WHERE k = 1",
            "key [#0 #1], #0, #1 w",
        ),
        ("INSERT INTO t (k) VALUES (1) ON CONFLICT (k) DO UPDATE SET k = 2", "refuse 0A000"),
        (
            "INSERT INTO t (k) VALUES (1) ON CONFLICT (k) DO UPDATE SET x = (SELECT max(x) FROM t2 WHERE k = 1)",
            "key #0, #1 w",
        ),
        (
            "INSERT INTO t (k) VALUES (1) ON CONFLICT (k) DO UPDATE SET x = (SELECT max(x) FROM t2)",
            "refuse 0A000",
        ),
        ("INSERT INTO t (k) VALUES (NULL)", "key null w"),
        ("UPDATE t SET x = x + 1 WHERE k = 1 RETURNING *", "key #1 w"),
        ("UPDATE t SET k = 2 WHERE k = 1", "key #0, #1 w"),
        ("UPDATE t SET k = k WHERE k = 1", "key #0 w"),
        ("UPDATE t SET k = k + 1 WHERE k = 1", "apply w"),
        ("UPDATE t SET (k, x) = (SELECT 1, 2) WHERE k = 1", "apply w"),
        (
            "UPDATE t SET x = u.x FROM unnest($1::int8[], $2::int4[]) AS u (k, x) WHERE t.k = u.k",
            "key any $1 w",
        ),
        ("UPDATE t a SET x = b.x FROM t2 b WHERE b.k = a.k AND a.k = 1", "key #0 w"),
        ("UPDATE t SET x = 1 WHERE CURRENT OF c", "refuse 0A000"),
        ("DELETE FROM t WHERE k = 1 RETURNING x", "key #0 w"),
        ("DELETE FROM t", "each w"),
        ("UPDATE t SET x = 1", "each w"),
        ("WITH d AS (DELETE FROM t WHERE k = 1 RETURNING *) INSERT INTO t2 SELECT * FROM d", "key #0 w"),
        ("WITH d AS (DELETE FROM t RETURNING *) INSERT INTO t2 SELECT * FROM d WHERE k = 1", "apply w"),
        ("WITH d AS (DELETE FROM t RETURNING *) INSERT INTO t (k, x) SELECT x, k FROM d", "apply w"),
        ("WITH u AS (UPDATE t SET x = 2 RETURNING x) SELECT count(*) FROM u", "apply w"),
        // Of two that change one row PostgreSQL does one, and what conflicts is known to the shards alone.
        ("WITH u AS (UPDATE t SET x = 2), w AS (DELETE FROM t) SELECT count(*) FROM t", "refuse 0A000"),
        (
            "WITH d AS (DELETE FROM t RETURNING *) INSERT INTO t (k, x) SELECT x, k FROM d ON CONFLICT DO NOTHING",
            "refuse 0A000",
        ),
        ("EXPLAIN WITH u AS (UPDATE t SET x = 2 RETURNING x) SELECT count(*) FROM u", "refuse 0A000"),
        (
            "WITH i AS (INSERT INTO t (k, x) VALUES ($1, 1) RETURNING k) SELECT * FROM i JOIN t2 USING (k)",
            "key $1 w",
        ),
        (
            "WITH u AS (UPDATE t SET x = 2 WHERE k = 1 RETURNING x) SELECT * FROM t2 WHERE k = 1",
            "key #1, #2 w",
        ),
        ("INSERT INTO settings VALUES ('a', 'b')", "default w"),
        ("UPDATE settings SET value = 'b' WHERE name = 'a'", "default w"),
        ("INSERT INTO settings SELECT code, name FROM currencies", "default w"),
        ("INSERT INTO settings SELECT v, v FROM t WHERE k = 1", "apply w"),
        ("INSERT INTO currencies VALUES ('EUR', 2, 'Euro')", "reference-write w"),
        ("UPDATE currencies SET name = $1 WHERE code = $2", "reference-write w"),
        ("DELETE FROM currencies WHERE code = 'EUR' RETURNING *", "reference-write w"),
        ("INSERT INTO currencies VALUES ('EUR', 2, now()::text)", "apply w"),
        ("INSERT INTO currencies VALUES ('EUR', 2, current_user)", "apply w"),
        ("UPDATE currencies SET exponent = (random() * 3)::int", "apply w"),
        ("UPDATE currencies SET name = (SELECT v FROM t WHERE k = 1)", "apply w"),
        ("UPDATE currencies SET name = (SELECT value FROM settings LIMIT 1)", "apply w"),
        ("INSERT INTO currencies SELECT code || 'x', exponent, name FROM currencies LIMIT 1", "apply w"),
        ("INSERT INTO holidays (day, name) VALUES ('2026-01-01', 'x')", "apply w"),
        ("INSERT INTO holidays (id, day, name) VALUES (1, '2026-01-01', 'x')", "reference-write w"),
        ("INSERT INTO holidays VALUES (DEFAULT, '2026-01-01', 'x')", "apply w"),
        ("INSERT INTO holidays VALUES (1, '2026-01-01', 'x')", "reference-write w"),
        ("INSERT INTO tenant_totals VALUES ($1, 1)", "refuse 0A000"),
        ("INSERT INTO drifted VALUES ($1, 1)", "refuse 0A000"),
        ("SELECT * FROM drifted WHERE tenant_id = $1", "refuse 0A000"),
        ("SELECT * FROM guarded WHERE tenant_id = $1", "refuse 0A000"),
    ]);
}

#[test]
fn pgbench_and_the_payment_core() {
    check(&[
        ("SELECT abalance FROM pgbench_accounts WHERE aid = 42;", "key #0 r"),
        ("UPDATE pgbench_accounts SET abalance = abalance + -1234 WHERE aid = 42;", "key #1 w"),
        ("UPDATE pgbench_branches SET bbalance = bbalance + 5 WHERE bid = 1", "reference-write w"),
        ("select count(*) from pgbench_branches", "any r"),
        ("vacuum pgbench_branches", "ddl-autocommit w"),
        ("copy pgbench_accounts from stdin with (freeze on)", "copy-in 0 w"),
        ("SELECT * FROM post_payments($1::uuid[], $2::uuid[], $3::text[])", "key batch any $1 w"),
        ("SELECT ord, outcome FROM post_payments($1, $2, $3)", "key batch any $1 w"),
        (
            "SELECT * FROM public.post_payments('{550e8400-e29b-41d4-a716-446655440000}', $1, $2)",
            "key batch any #0 w",
        ),
        ("SELECT balance_of($1, $2)", "key $1 w"),
        ("SELECT balance_of('550e8400-e29b-41d4-a716-446655440000'::uuid, $1)", "key #0 w"),
        ("SELECT balance_of(tenant_id, account_id) FROM accounts WHERE tenant_id = $1", "key $1 w"),
        ("SELECT balance_of(tenant_id, account_id) FROM accounts", "each w"),
        ("SELECT balance_of(gen_random_uuid(), $1)", "refuse 0A000"),
        ("CALL close_month($1)", "key $1 w"),
        ("CALL close_month($1, $2)", "key $1 w"),
        (
            "SELECT p.*, c.exponent FROM payments p JOIN currencies c ON c.code = p.currency WHERE p.tenant_id = $1 AND (p.created_at, p.payment_id) < ($2, $3) ORDER BY p.created_at DESC, p.payment_id DESC LIMIT $4",
            "key $1 r",
        ),
        (
            "UPDATE relay_leases SET owner = $1, epoch = epoch + 1, expires_at = now() + interval '10 seconds' WHERE shard_id = $2 AND expires_at < now()",
            "default w",
        ),
        (
            "SELECT account_id, currency, posted_minor FROM accounts WHERE tenant_id = $1 AND account_id = ANY($2)",
            "key $1 r",
        ),
        (
            "SELECT a.* FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS u(t, a, n) JOIN accounts a ON a.tenant_id = u.t AND a.account_id = u.a ORDER BY u.n",
            "key any $1 r",
        ),
    ]);
}
