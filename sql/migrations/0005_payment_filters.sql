-- What GET /v1/payments can be narrowed by.
--
-- account_id needs no index of its own for payments that succeeded: each has an entry, and the entries of an account are
-- indexed by its version, so the list is paged by that. Two indexes on payments by account would say the same again for
-- two more random index writes a payment, a tenth of its WAL, and first of all for the CPU of the posting.
--
-- Payments that did not succeed have no entry. They are few, and an index of them costs those that succeed nothing: for
-- the list by status, and for the lists of both accounts. The source's partial index for PENDING and PROCESSING is the
-- first of them, because these statuses are in it too.
CREATE INDEX payments_unsettled ON payments (tenant_id, created_at, payment_id) WHERE status <> 'succeeded';
CREATE INDEX payments_unsettled_debit ON payments (tenant_id, debit_account_id, created_at, payment_id)
    WHERE status <> 'succeeded';
CREATE INDEX payments_unsettled_credit ON payments (tenant_id, credit_account_id, created_at, payment_id)
    WHERE status <> 'succeeded';
