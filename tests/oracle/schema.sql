-- What both sides get. Tables with tenant_id are sharded by it; countries and products are reference tables (see the
-- stack's proxy.toml); settings and numbers are plain.
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, b text);

CREATE TABLE customers (
    tenant_id uuid NOT NULL, id int NOT NULL, name text NOT NULL, code text COLLATE "C", email varchar(40),
    balance numeric(12, 2), score float8, active boolean, born date, created timestamptz,
    tags text[], doc jsonb, photo bytea,
    PRIMARY KEY (tenant_id, id));
CREATE TABLE orders (
    tenant_id uuid NOT NULL, id bigint NOT NULL, customer_id int, status varchar(10) NOT NULL, total numeric(12, 2),
    placed timestamp NOT NULL, country char(2), note text,
    PRIMARY KEY (tenant_id, id));
CREATE INDEX orders_by_status ON orders (status);
CREATE TABLE items (
    tenant_id uuid NOT NULL, order_id bigint NOT NULL, line smallint NOT NULL, product_id int NOT NULL,
    quantity int NOT NULL CHECK (quantity >= 0), price numeric(10, 2) NOT NULL, discount numeric(4, 2),
    PRIMARY KEY (tenant_id, order_id, line),
    CONSTRAINT items_of_orders FOREIGN KEY (tenant_id, order_id) REFERENCES orders (tenant_id, id) ON DELETE CASCADE);
CREATE TABLE events (
    tenant_id uuid NOT NULL, at timestamptz NOT NULL, kind text, seq bigint, payload jsonb)
    PARTITION BY RANGE (at);
CREATE TABLE events_old PARTITION OF events FOR VALUES FROM (MINVALUE) TO ('2026-01-01 00:00+00');
CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01 00:00+00') TO ('2027-01-01 00:00+00');
CREATE TABLE events_rest PARTITION OF events DEFAULT;
CREATE TABLE typed (
    tenant_id uuid NOT NULL, id int NOT NULL, m mood, p positive, pr pair, r int4range, iv interval, t time, tz timetz,
    ip inet, mac macaddr, pt point, u uuid, b bit(4), v varbit, money money, ts tsvector, xs int[], ms mood[], small int2,
    re float4, js json, ch "char", nm name,
    PRIMARY KEY (tenant_id, id));
CREATE TABLE filled (
    tenant_id uuid NOT NULL, id int NOT NULL, a int DEFAULT 7, b text DEFAULT 'none', c int GENERATED ALWAYS AS (id * 2) STORED,
    CONSTRAINT filled_pk PRIMARY KEY (tenant_id, id),
    CONSTRAINT filled_a UNIQUE (tenant_id, a),
    CONSTRAINT filled_positive CHECK (id > 0));
CREATE TABLE "Odd Names" ("tenant_id" uuid NOT NULL, "Id" int, "select" text, "ünï" text, "a""b" int);
CREATE TABLE nothing (tenant_id uuid NOT NULL, id int, v text);
CREATE TABLE countries (code char(2) PRIMARY KEY, name text NOT NULL, region text, tax numeric(4, 2));
CREATE TABLE products (id int PRIMARY KEY, name text NOT NULL, category text, price numeric(10, 2), attributes jsonb);
CREATE TABLE settings (key text PRIMARY KEY, value text, n int);
CREATE TABLE numbers (n int PRIMARY KEY, word text);

CREATE VIEW big_orders AS SELECT tenant_id, id, customer_id, status, total FROM orders WHERE total > 100;
CREATE VIEW order_totals AS
    SELECT o.tenant_id, o.id, o.status, sum(i.quantity * i.price) AS amount, count(*) AS lines
    FROM orders o JOIN items i ON i.tenant_id = o.tenant_id AND i.order_id = o.id GROUP BY o.tenant_id, o.id, o.status;
CREATE VIEW order_countries AS SELECT o.tenant_id, o.id, c.name, c.region FROM orders o JOIN countries c ON c.code = o.country;
CREATE VIEW regions AS SELECT region, count(*) AS n, max(tax) AS tax FROM countries GROUP BY region;

CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 2';
CREATE FUNCTION with_tax(amount numeric, tax numeric DEFAULT 0.20) RETURNS numeric LANGUAGE sql IMMUTABLE AS 'SELECT round(amount * (1 + tax), 2)';
CREATE FUNCTION label(n int) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN 'label ' || n; END $$;
CREATE FUNCTION evens(upto int) RETURNS SETOF int LANGUAGE sql IMMUTABLE AS 'SELECT g FROM generate_series(2, upto, 2) g';
CREATE AGGREGATE product(int) (SFUNC = int4mul, STYPE = int, INITCOND = '1');
