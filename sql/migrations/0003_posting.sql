-- The only code that moves money.
--
-- A batch is ONE call and one transaction: claim the idempotency keys, lock the accounts in id order, decide the
-- payments in the caller's order against the locked balances, write with set statements. Two callers may post to the
-- same accounts: keys are claimed in (tenant, key) order before any account is locked, accounts in (tenant, account)
-- order, so they cannot deadlock. Unknown outcomes are resolved by calling again with the same keys.

-- Applies the windowed rules of one payment whose debit account is locked. Returns the decline code, or NULL after
-- counting the payment.
CREATE FUNCTION use_windowed_rules(p_tenant uuid, p_account uuid, p_amount bigint, p_currency text)
    RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    r record;
    v_start timestamptz;
    v_count bigint;
    v_minor bigint;
BEGIN
    FOR r IN
        SELECT f.rule_id, f.rule_type, f.amount_minor, f.max_count,
               CASE WHEN f.rule_type = 'daily_amount' THEN 86400 ELSE f.window_seconds END AS seconds
          FROM fraud_rules f
         WHERE f.tenant_id = p_tenant AND f.is_active AND f.rule_type <> 'max_amount'
           AND (f.currency IS NULL OR f.currency = p_currency)
         ORDER BY f.rule_id
    LOOP
        v_start := to_timestamp(div(extract(epoch FROM clock_timestamp()), r.seconds) * r.seconds);
        SELECT u.used_count, u.used_minor INTO v_count, v_minor
          FROM rule_usage u
         WHERE u.tenant_id = p_tenant AND u.rule_id = r.rule_id AND u.account_id = p_account
           AND u.window_start = v_start;
        IF r.rule_type = 'daily_amount' AND coalesce(v_minor, 0) + p_amount > r.amount_minor THEN
            RETURN 'limit_exceeded';
        ELSIF r.rule_type = 'velocity_count' AND coalesce(v_count, 0) + 1 > r.max_count THEN
            RETURN 'velocity_exceeded';
        END IF;
    END LOOP;
    -- Counted only when every rule allows the payment.
    INSERT INTO rule_usage AS u (tenant_id, rule_id, account_id, window_start, used_count, used_minor)
    SELECT p_tenant, f.rule_id, p_account,
           to_timestamp(div(extract(epoch FROM clock_timestamp()), w.seconds) * w.seconds), 1, p_amount
      FROM fraud_rules f
     CROSS JOIN LATERAL (SELECT CASE WHEN f.rule_type = 'daily_amount' THEN 86400 ELSE f.window_seconds END AS seconds) w
     WHERE f.tenant_id = p_tenant AND f.is_active AND f.rule_type <> 'max_amount'
       AND (f.currency IS NULL OR f.currency = p_currency)
    ON CONFLICT (tenant_id, rule_id, account_id) DO UPDATE
       SET used_count = CASE WHEN u.window_start = excluded.window_start THEN u.used_count + 1 ELSE 1 END,
           used_minor = CASE WHEN u.window_start = excluded.window_start
                             THEN u.used_minor + excluded.used_minor ELSE excluded.used_minor END,
           window_start = excluded.window_start;
    RETURN NULL;
END $$;

-- One result row per input row, `ord` 1-based in input order.
--   outcome: created  - stored now; status succeeded or declined, code = why declined
--            replayed - the key was used before with the same request; the first outcome is returned
--            mismatch - the key was used before with another request; nothing was done
--            rejected - not a valid request against this ledger; nothing was stored; code says why
-- The balances and versions after the posting are given for created ones only.
-- Arrays are parallel and of equal length, without NULL in the first eight.
CREATE FUNCTION post_payments(
    p_tenant_ids uuid[], p_payment_ids uuid[], p_keys text[], p_hashes bytea[],
    p_debit uuid[], p_credit uuid[], p_amounts bigint[], p_currencies text[],
    p_types text[], p_references text[], p_descriptions text[], p_metadata text[])
RETURNS TABLE (ord int, outcome text, payment_id uuid, created_at timestamptz, status text, code text,
               debit_posted bigint, debit_version bigint, credit_posted bigint, credit_version bigint)
-- The statements' plans do not depend on the values, and planning would cost more than running a small batch.
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    n int := cardinality(p_tenant_ids);
    v_now timestamptz := clock_timestamp();
    v_claimed uuid[];
    -- The locked accounts, by position.
    a_tenant uuid[]; a_id uuid[]; a_currency text[]; a_active bool[];
    a_posted bigint[]; a_free bigint[]; a_version bigint[]; a_seq bigint[]; a_touched bool[];
    -- Per payment.
    x_claimed bool[]; x_debit int[]; x_credit int[]; x_reject text[]; x_limit bigint[]; x_windowed bool[];
    -- Results per payment.
    r_outcome text[] := array_fill(NULL::text, ARRAY[n]);
    r_code text[] := array_fill(NULL::text, ARRAY[n]);
    r_dp bigint[] := array_fill(NULL::bigint, ARRAY[n]);
    r_dv bigint[] := array_fill(NULL::bigint, ARRAY[n]);
    r_cp bigint[] := array_fill(NULL::bigint, ARRAY[n]);
    r_cv bigint[] := array_fill(NULL::bigint, ARRAY[n]);
    r_seq bigint[] := array_fill(NULL::bigint, ARRAY[n]);
    i int; d int; c int; v_amount bigint; v_code text; v_stored int := 0; v_rejected bool := false;
BEGIN
    IF n IS NULL OR n = 0 THEN
        RETURN;
    END IF;
    IF (n = ALL (ARRAY[cardinality(p_payment_ids), cardinality(p_keys), cardinality(p_hashes), cardinality(p_debit),
                       cardinality(p_credit), cardinality(p_amounts), cardinality(p_currencies), cardinality(p_types),
                       cardinality(p_references), cardinality(p_descriptions), cardinality(p_metadata)])) IS NOT TRUE THEN
        RAISE EXCEPTION 'post_payments: the arrays differ in length' USING ERRCODE = '22023';
    END IF;

    -- 1. Claim the keys. A concurrent claim of the same key is waited for here.
    WITH claim AS (
        INSERT INTO idempotency_keys AS k (tenant_id, key, request_hash, payment_id, created_at, expires_at)
        SELECT u.t, u.k, u.h, u.p, v_now, v_now + interval '7 days'
          FROM unnest(p_tenant_ids, p_keys, p_hashes, p_payment_ids) WITH ORDINALITY AS u (t, k, h, p, o)
         ORDER BY u.t, u.k COLLATE "C", u.o
        ON CONFLICT (tenant_id, key) DO NOTHING
        RETURNING k.payment_id)
    SELECT array_agg(claim.payment_id) INTO v_claimed FROM claim;

    IF v_claimed IS NOT NULL THEN
        -- 2. Lock the accounts of the claimed payments, in id order.
        SELECT array_agg(l.tenant_id), array_agg(l.account_id), array_agg(l.currency::text),
               array_agg(l.status = 'ACTIVE'), array_agg(l.posted_minor),
               array_agg(CASE WHEN l.min_balance_minor IS NULL THEN NULL
                              ELSE l.posted_minor - l.held_minor - l.min_balance_minor END),
               array_agg(l.version), array_agg(l.event_seq), array_agg(false)
          INTO a_tenant, a_id, a_currency, a_active, a_posted, a_free, a_version, a_seq, a_touched
          FROM (SELECT a.*
                  FROM (SELECT u.t, u.a FROM unnest(p_tenant_ids, p_debit) AS u (t, a)
                        UNION SELECT u.t, u.a FROM unnest(p_tenant_ids, p_credit) AS u (t, a)) w
                  JOIN accounts a ON a.tenant_id = w.t AND a.account_id = w.a
                 ORDER BY a.tenant_id, a.account_id
                   FOR NO KEY UPDATE OF a) l;

        -- 3. What each payment needs to be decided, in input order.
        SELECT array_agg(cl.p IS NOT NULL ORDER BY u.o), array_agg(da.o ORDER BY u.o), array_agg(ca.o ORDER BY u.o),
               array_agg(CASE
                   WHEN t.status IS NULL THEN 'unknown_tenant'
                   WHEN t.status <> 'ACTIVE' THEN 'tenant_suspended'
                   WHEN u.d = u.c THEN 'same_account'
                   WHEN da.o IS NULL OR ca.o IS NULL THEN 'unknown_account'
                   WHEN u.amount <= 0 THEN 'invalid_amount'
                   WHEN u.ty IS NOT NULL AND pt.code IS NULL THEN 'unknown_payment_type'
                   WHEN u.ty IS NOT NULL AND NOT pt.is_active THEN 'payment_type_inactive'
                   WHEN u.amount < pt.min_amount_minor OR u.amount > pt.max_amount_minor THEN 'amount_out_of_range'
                   END ORDER BY u.o),
               array_agg((SELECT min(f.amount_minor) FROM fraud_rules f
                           WHERE f.tenant_id = u.t AND f.is_active AND f.rule_type = 'max_amount'
                             AND (f.currency IS NULL OR f.currency = u.cur)) ORDER BY u.o),
               array_agg(EXISTS (SELECT FROM fraud_rules f
                           WHERE f.tenant_id = u.t AND f.is_active AND f.rule_type <> 'max_amount') ORDER BY u.o)
          INTO x_claimed, x_debit, x_credit, x_reject, x_limit, x_windowed
          FROM unnest(p_tenant_ids, p_payment_ids, p_debit, p_credit, p_amounts, p_currencies, p_types)
               WITH ORDINALITY AS u (t, p, d, c, amount, cur, ty, o)
          LEFT JOIN unnest(v_claimed) AS cl (p) ON cl.p = u.p
          LEFT JOIN unnest(a_tenant, a_id) WITH ORDINALITY AS da (t, a, o) ON da.t = u.t AND da.a = u.d
          LEFT JOIN unnest(a_tenant, a_id) WITH ORDINALITY AS ca (t, a, o) ON ca.t = u.t AND ca.a = u.c
          LEFT JOIN tenants t ON t.tenant_id = u.t
          LEFT JOIN payment_types pt ON pt.tenant_id = u.t AND pt.code = u.ty;

        -- 4. Decide in the caller's order.
        FOR i IN 1..n LOOP
            CONTINUE WHEN NOT x_claimed[i];
            d := x_debit[i];
            c := x_credit[i];
            v_code := x_reject[i];
            IF v_code IS NULL AND (a_currency[d] <> p_currencies[i] OR a_currency[c] <> p_currencies[i]) THEN
                v_code := 'currency_mismatch';
            END IF;
            IF v_code IS NOT NULL THEN
                r_outcome[i] := 'rejected';
                r_code[i] := v_code;
                v_rejected := true;
                CONTINUE;
            END IF;
            v_amount := p_amounts[i];
            IF NOT a_active[d] OR NOT a_active[c] THEN
                v_code := 'account_not_active';
            ELSIF v_amount > x_limit[i] THEN
                v_code := 'limit_exceeded';
            ELSIF a_free[d] < v_amount THEN
                v_code := 'insufficient_funds';
            ELSIF x_windowed[i] THEN
                v_code := use_windowed_rules(p_tenant_ids[i], p_debit[i], v_amount, p_currencies[i]);
            END IF;
            r_outcome[i] := 'created';
            r_code[i] := v_code;
            a_seq[d] := a_seq[d] + 1;
            r_seq[i] := a_seq[d];
            a_touched[d] := true;
            v_stored := v_stored + 1;
            IF v_code IS NULL THEN
                a_posted[d] := a_posted[d] - v_amount;
                a_posted[c] := a_posted[c] + v_amount;
                a_free[d] := a_free[d] - v_amount;
                a_free[c] := a_free[c] + v_amount;
                a_version[d] := a_version[d] + 1;
                a_version[c] := a_version[c] + 1;
                a_touched[c] := true;
                r_dp[i] := a_posted[d];
                r_dv[i] := a_version[d];
                r_cp[i] := a_posted[c];
                r_cv[i] := a_version[c];
            END IF;
        END LOOP;
    END IF;

    -- 5. Write.
    IF v_stored > 0 THEN
        INSERT INTO payments (tenant_id, payment_id, created_at, reference, debit_account_id, credit_account_id,
                              amount_minor, currency, status, decline_code, payment_type, description, metadata)
        SELECT u.t, u.p, uuid_v7_time(u.p), u.ref, u.d, u.c, u.amount, u.cur,
               CASE WHEN u.code IS NULL THEN 'succeeded' ELSE 'declined' END, u.code, u.ty, u.descr, u.meta::jsonb
          FROM unnest(p_tenant_ids, p_payment_ids, p_references, p_debit, p_credit, p_amounts, p_currencies, r_code,
                      p_types, p_descriptions, p_metadata, r_outcome)
               AS u (t, p, ref, d, c, amount, cur, code, ty, descr, meta, outcome)
         WHERE u.outcome = 'created';
        INSERT INTO entries (tenant_id, payment_id, created_at, debit_account_id, credit_account_id, amount_minor,
                             currency, debit_posted_after, debit_version, credit_posted_after, credit_version)
        SELECT u.t, u.p, uuid_v7_time(u.p), u.d, u.c, u.amount, u.cur, u.dp, u.dv, u.cp, u.cv
          FROM unnest(p_tenant_ids, p_payment_ids, p_debit, p_credit, p_amounts, p_currencies, r_dp, r_dv, r_cp, r_cv)
               AS u (t, p, d, c, amount, cur, dp, dv, cp, cv)
         WHERE u.dv IS NOT NULL;
        INSERT INTO outbox (tenant_id, account_id, event_seq, event_id, event_type, payment_id, credit_account_id,
                            amount_minor, currency, status, code, occurred_at)
        SELECT u.t, u.d, u.seq, u.p,
               CASE WHEN u.code IS NULL THEN 'payments.payment.succeeded' ELSE 'payments.payment.declined' END,
               u.p, u.c, u.amount, u.cur, CASE WHEN u.code IS NULL THEN 'succeeded' ELSE 'declined' END, u.code, v_now
          FROM unnest(p_tenant_ids, p_payment_ids, p_debit, p_credit, p_amounts, p_currencies, r_code, r_seq)
               AS u (t, p, d, c, amount, cur, code, seq)
         WHERE u.seq IS NOT NULL;
        UPDATE accounts a
           SET posted_minor = u.posted, version = u.version, event_seq = u.seq, updated_at = v_now
          FROM unnest(a_tenant, a_id, a_posted, a_version, a_seq, a_touched) AS u (t, id, posted, version, seq, touched)
         WHERE u.touched AND a.tenant_id = u.t AND a.account_id = u.id;
    END IF;
    IF v_rejected THEN
        -- A rejected request leaves no trace: its key may be used again for a corrected one.
        DELETE FROM idempotency_keys k
         USING unnest(p_tenant_ids, p_keys, p_payment_ids, r_outcome) AS u (t, k, p, outcome)
         WHERE u.outcome = 'rejected' AND k.tenant_id = u.t AND k.key = u.k AND k.payment_id = u.p;
    END IF;

    -- 6. Answer. Payments that did not claim their key report what the first holder of the key did.
    IF v_claimed IS NULL OR cardinality(v_claimed) < n THEN
        -- The first holder's commit may still wait for the synchronous standby, or its wait was cut short by a restart.
        -- A record of our own makes this commit wait, too, and what comes before it in the WAL with it.
        PERFORM pg_logical_emit_message(true, 'post_payments', 'replay');
    END IF;
    IF v_claimed IS NOT NULL AND cardinality(v_claimed) = n THEN
        RETURN QUERY
        SELECT u.o::int, u.outcome, u.p, uuid_v7_time(u.p),
               CASE WHEN u.outcome = 'rejected' THEN NULL WHEN u.code IS NULL THEN 'succeeded' ELSE 'declined' END,
               u.code, u.dp, u.dv, u.cp, u.cv
          FROM unnest(p_payment_ids, r_outcome, r_code, r_dp, r_dv, r_cp, r_cv)
               WITH ORDINALITY AS u (p, outcome, code, dp, dv, cp, cv, o)
         ORDER BY u.o;
    ELSE
        RETURN QUERY
        SELECT u.o::int,
               coalesce(u.outcome, CASE WHEN k.key IS NULL THEN 'rejected'
                                        WHEN k.request_hash <> u.h OR p.payment_id IS NULL THEN 'mismatch'
                                        ELSE 'replayed' END),
               coalesce(p.payment_id, u.p), uuid_v7_time(coalesce(p.payment_id, u.p)),
               CASE WHEN u.outcome = 'rejected' THEN NULL
                    WHEN u.outcome IS NULL THEN p.status::text
                    WHEN u.code IS NULL THEN 'succeeded' ELSE 'declined' END,
               CASE WHEN u.outcome IS NULL AND k.key IS NULL THEN 'duplicate_of_rejected'
                    ELSE coalesce(u.code, p.decline_code::text) END,
               u.dp, u.dv, u.cp, u.cv
          FROM unnest(p_tenant_ids, p_payment_ids, p_keys, p_hashes, r_outcome, r_code, r_dp, r_dv, r_cp, r_cv)
               WITH ORDINALITY AS u (t, p, k, h, outcome, code, dp, dv, cp, cv, o)
          LEFT JOIN idempotency_keys k ON u.outcome IS NULL AND k.tenant_id = u.t AND k.key = u.k
          LEFT JOIN payments p ON p.tenant_id = u.t AND p.payment_id = k.payment_id
                              AND p.created_at = uuid_v7_time(k.payment_id)
         ORDER BY u.o;
    END IF;
END $$;
