-- Who uses the system, and what they may do. Every table with tenant_id is sharded by it; `currencies` is the
-- same on every shard.

CREATE TABLE currencies (
    code     char(3) PRIMARY KEY,
    exponent smallint NOT NULL CHECK (exponent BETWEEN 0 AND 4)
);

CREATE TABLE tenants (
    tenant_id  uuid PRIMARY KEY,
    name       varchar(200) NOT NULL,
    status     varchar(20) NOT NULL DEFAULT 'ACTIVE' CHECK (status IN ('ACTIVE', 'SUSPENDED', 'CLOSED')),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    tenant_id  uuid NOT NULL REFERENCES tenants,
    key_id     uuid NOT NULL,
    prefix     varchar(64) NOT NULL,
    key_hash   bytea NOT NULL CHECK (octet_length(key_hash) = 32),
    scopes     text[] NOT NULL DEFAULT '{}',
    status     varchar(20) NOT NULL DEFAULT 'ACTIVE' CHECK (status IN ('ACTIVE', 'REVOKED')),
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz,
    PRIMARY KEY (tenant_id, key_id),
    UNIQUE (tenant_id, key_hash)
);

CREATE TABLE tenant_config (
    tenant_id   uuid NOT NULL REFERENCES tenants,
    config_type varchar(50) NOT NULL,
    config      jsonb NOT NULL,
    version     bigint NOT NULL DEFAULT 1,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, config_type)
);

-- The source asks for an index on payment_types(id) where is_active: the primary key already finds the row, and a
-- tenant has a handful of types, so it is left out.
CREATE TABLE payment_types (
    tenant_id        uuid NOT NULL REFERENCES tenants,
    payment_type_id  uuid NOT NULL,
    code             varchar(50) NOT NULL,
    name             varchar(200) NOT NULL,
    is_active        boolean NOT NULL DEFAULT true,
    min_amount_minor bigint CHECK (min_amount_minor >= 0),
    max_amount_minor bigint CHECK (max_amount_minor > 0),
    version          bigint NOT NULL DEFAULT 1,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, payment_type_id),
    UNIQUE (tenant_id, code)
);

-- rule_type: max_amount (one payment's amount), daily_amount (an account's succeeded debits a UTC day),
-- velocity_count (an account's payments a window of window_seconds, windows aligned to the epoch).
CREATE TABLE fraud_rules (
    tenant_id      uuid NOT NULL REFERENCES tenants,
    rule_id        uuid NOT NULL,
    rule_type      varchar(40) NOT NULL CHECK (rule_type IN ('max_amount', 'daily_amount', 'velocity_count')),
    currency       char(3),
    amount_minor   bigint CHECK (amount_minor > 0),
    window_seconds integer CHECK (window_seconds BETWEEN 1 AND 31622400),
    max_count      integer CHECK (max_count > 0),
    is_active      boolean NOT NULL DEFAULT true,
    version        bigint NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, rule_id),
    CHECK (rule_type = 'velocity_count' OR amount_minor IS NOT NULL),
    CHECK (rule_type <> 'velocity_count' OR (max_count IS NOT NULL AND window_seconds IS NOT NULL))
);

-- What an account has used of a rule in the current window. Written only under the lock of the account's row. Without a
-- foreign key to the rule: a payment must not fail because its rule is deleted meanwhile; a sweeper removes what is left.
CREATE TABLE rule_usage (
    tenant_id    uuid NOT NULL,
    rule_id      uuid NOT NULL,
    account_id   uuid NOT NULL,
    window_start timestamptz NOT NULL,
    used_count   bigint NOT NULL,
    used_minor   bigint NOT NULL,
    PRIMARY KEY (tenant_id, rule_id, account_id)
);
