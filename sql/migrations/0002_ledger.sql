-- Accounts and the ledger. Amounts are bigint minor units of the row's currency: exact, and a third of the size
-- of numeric. Reports that want decimals use the view `transactions`.

-- Left out of the source's list: accounts(balance) where ACTIVE. No query uses it, and an index on the balance
-- would make every posting a non-HOT update. The fill factor leaves room for HOT updates.
CREATE TABLE accounts (
    tenant_id         uuid NOT NULL REFERENCES tenants,
    account_id        uuid NOT NULL,
    account_number    varchar(50) NOT NULL,
    currency          char(3) NOT NULL REFERENCES currencies,
    type              varchar(20) NOT NULL DEFAULT 'wallet' CHECK (type IN ('wallet', 'settlement')),
    status            varchar(20) NOT NULL DEFAULT 'ACTIVE' CHECK (status IN ('ACTIVE', 'FROZEN', 'CLOSED')),
    posted_minor      bigint NOT NULL DEFAULT 0,
    held_minor        bigint NOT NULL DEFAULT 0 CHECK (held_minor >= 0),
    -- posted - held never falls below it by a payment; NULL = no limit (money enters the system there).
    min_balance_minor bigint DEFAULT 0 CHECK (min_balance_minor <= 0),
    -- Number of entries of this account; entry n carries version n.
    version           bigint NOT NULL DEFAULT 0,
    -- Number of events keyed by this account; event n carries sequence n.
    event_seq         bigint NOT NULL DEFAULT 0,
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, account_id),
    UNIQUE (tenant_id, account_number)
) WITH (fillfactor = 70);

-- created_at is the millisecond inside the UUIDv7 payment_id, so a look-up by id prunes to one partition and the
-- primary key serves the tenant's list in time order. That order replaces the source's indexes on (created_at),
-- (tenant_id) and (tenant_id, status, created_at); (status) alone is never asked for across tenants.
CREATE TABLE payments (
    tenant_id         uuid NOT NULL,
    payment_id        uuid NOT NULL,
    created_at        timestamptz NOT NULL,
    reference         varchar(100),
    debit_account_id  uuid NOT NULL,
    credit_account_id uuid NOT NULL,
    amount_minor      bigint NOT NULL CHECK (amount_minor > 0),
    currency          char(3) NOT NULL,
    status            varchar(20) NOT NULL
        CHECK (status IN ('pending', 'processing', 'succeeded', 'declined', 'canceled', 'expired', 'failed')),
    decline_code      varchar(40),
    payment_type      varchar(50),
    description       varchar(500),
    metadata          jsonb,
    PRIMARY KEY (tenant_id, created_at, payment_id)
) PARTITION BY RANGE (created_at);

-- One row holds both legs of a posting, so debits equal credits by construction, at half the WAL of two rows.
-- Append-only. Each leg carries its account's version and running balance; `account_entries` shows one row a leg.
CREATE TABLE entries (
    tenant_id           uuid NOT NULL,
    payment_id          uuid NOT NULL,
    created_at          timestamptz NOT NULL,
    debit_account_id    uuid NOT NULL,
    credit_account_id   uuid NOT NULL,
    amount_minor        bigint NOT NULL CHECK (amount_minor > 0),
    currency            char(3) NOT NULL,
    debit_posted_after  bigint NOT NULL,
    debit_version       bigint NOT NULL,
    credit_posted_after bigint NOT NULL,
    credit_version      bigint NOT NULL,
    PRIMARY KEY (tenant_id, debit_account_id, debit_version, created_at),
    CHECK (debit_account_id <> credit_account_id)
) PARTITION BY RANGE (created_at);
CREATE INDEX entries_credit ON entries (tenant_id, credit_account_id, credit_version);

CREATE VIEW account_entries AS
    SELECT tenant_id, debit_account_id AS account_id, debit_version AS version, -amount_minor AS amount_minor,
           currency, debit_posted_after AS posted_after_minor, payment_id, created_at,
           credit_account_id AS counterparty_account_id
      FROM entries
    UNION ALL
    SELECT tenant_id, credit_account_id, credit_version, amount_minor,
           currency, credit_posted_after, payment_id, created_at, debit_account_id
      FROM entries;

-- Uniqueness of a key cannot live on monthly partitions (it would have to contain created_at), so it has its own
-- table and its own retention.
CREATE TABLE idempotency_keys (
    tenant_id    uuid NOT NULL,
    key          varchar(255) COLLATE "C" NOT NULL,
    request_hash bytea NOT NULL,
    payment_id   uuid,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    -- The stored answer of a request that is not a payment.
    response     jsonb,
    PRIMARY KEY (tenant_id, key)
);
-- BRIN: the retention sweeper finds old rows, and inserting costs next to nothing.
CREATE INDEX idempotency_keys_expires ON idempotency_keys USING brin (expires_at);

-- What happened, for Kafka. `pending` is published_at IS NULL; order is per account by event_seq, which is assigned
-- under the account's row lock, so it has no gaps and no late commits, and it survives a move to another shard.
CREATE TABLE outbox (
    tenant_id         uuid NOT NULL,
    account_id        uuid NOT NULL,
    event_seq         bigint NOT NULL,
    event_id          uuid NOT NULL,
    event_type        varchar(60) NOT NULL,
    payment_id        uuid NOT NULL,
    credit_account_id uuid NOT NULL,
    amount_minor      bigint NOT NULL,
    currency          char(3) NOT NULL,
    status            varchar(20) NOT NULL,
    code              varchar(40),
    occurred_at       timestamptz NOT NULL,
    published_at      timestamptz,
    PRIMARY KEY (tenant_id, account_id, event_seq)
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX outbox_pending ON outbox (account_id, event_seq) WHERE published_at IS NULL;
CREATE INDEX outbox_published ON outbox USING brin (occurred_at);

-- One row a shard, on that shard: which core publishes its outbox. The epoch fences a relay that was paused.
CREATE TABLE relay_leases (
    shard_id   integer PRIMARY KEY,
    owner      text NOT NULL,
    epoch      bigint NOT NULL,
    expires_at timestamptz NOT NULL
);

-- What a consumer has done already, so that an event delivered twice acts once.
CREATE TABLE inbox (
    tenant_id    uuid NOT NULL,
    consumer     varchar(60) NOT NULL,
    event_id     uuid NOT NULL,
    processed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, consumer, event_id)
);

-- The source's shape of a payment, for reports and existing applications.
CREATE VIEW transactions AS
    SELECT p.payment_id AS id, p.reference AS transaction_reference, p.tenant_id,
           (p.amount_minor / power(10::numeric, c.exponent))::decimal(15, 2) AS amount, p.currency AS currency_code,
           upper(p.status)::varchar(20) AS status, p.created_at
      FROM payments p JOIN currencies c ON c.code = p.currency;

-- The millisecond inside a UUIDv7, RFC 9562 section 5.7.
CREATE FUNCTION uuid_v7_time(id uuid) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN to_timestamp(('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint / 1000.0);
