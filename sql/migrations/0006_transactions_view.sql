-- The amounts of the view in full: a currency has up to four decimals and an amount up to 19 digits, which the source's
-- decimal(15,2) would round or refuse, and with one such row the whole report. The scale is the currency's own. A view's
-- column cannot change its type, so the view is made anew.
DROP VIEW transactions;
CREATE VIEW transactions AS
    SELECT p.payment_id AS id, p.reference AS transaction_reference, p.tenant_id,
           round(p.amount_minor / power(10::numeric, c.exponent), c.exponent) AS amount, p.currency AS currency_code,
           upper(p.status)::varchar(20) AS status, p.created_at
      FROM payments p JOIN currencies c ON c.code = p.currency;
