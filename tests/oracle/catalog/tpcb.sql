-- The transaction of TPC-B: at the account's own branch, and at another one (15 % of them).
--! script
BEGIN;
UPDATE tpcb.accounts SET abalance = abalance + 100 WHERE tenant_id = {k1} AND aid = 11;
SELECT abalance FROM tpcb.accounts WHERE tenant_id = {k1} AND aid = 11;
UPDATE tpcb.tellers SET tbalance = tbalance + 100 WHERE tenant_id = {k1} AND tid = 1;
UPDATE tpcb.branches SET bbalance = bbalance + 100 WHERE tenant_id = {k1};
INSERT INTO tpcb.history VALUES ({k1}, 1, 11, 100, '2026-02-01');
END;
SELECT (SELECT sum(abalance) FROM tpcb.accounts), (SELECT sum(tbalance) FROM tpcb.tellers), (SELECT sum(bbalance) FROM tpcb.branches), (SELECT sum(delta) FROM tpcb.history);
--! end tpcb.accounts, tpcb.tellers, tpcb.branches, tpcb.history
--! script
BEGIN;
UPDATE tpcb.accounts SET abalance = abalance + -101 WHERE tenant_id = {k2} AND aid = 12;
SELECT abalance FROM tpcb.accounts WHERE tenant_id = {k2} AND aid = 12;
UPDATE tpcb.tellers SET tbalance = tbalance + -101 WHERE tenant_id = {k2} AND tid = 1;
UPDATE tpcb.branches SET bbalance = bbalance + -101 WHERE tenant_id = {k2};
INSERT INTO tpcb.history VALUES ({k2}, 1, 12, -101, '2026-02-01');
COMMIT;
SELECT (SELECT sum(abalance) FROM tpcb.accounts), (SELECT sum(tbalance) FROM tpcb.tellers), (SELECT sum(bbalance) FROM tpcb.branches), (SELECT sum(delta) FROM tpcb.history);
--! end tpcb.accounts, tpcb.tellers, tpcb.branches, tpcb.history
--! script
BEGIN;
UPDATE tpcb.accounts SET abalance = abalance + 102 WHERE tenant_id = {k3} AND aid = 13;
SELECT abalance FROM tpcb.accounts WHERE tenant_id = {k3} AND aid = 13;
UPDATE tpcb.tellers SET tbalance = tbalance + 102 WHERE tenant_id = {k1} AND tid = 1;
UPDATE tpcb.branches SET bbalance = bbalance + 102 WHERE tenant_id = {k1};
INSERT INTO tpcb.history VALUES ({k1}, 1, 13, 102, '2026-02-01');
END;
SELECT (SELECT sum(abalance) FROM tpcb.accounts), (SELECT sum(tbalance) FROM tpcb.tellers), (SELECT sum(bbalance) FROM tpcb.branches), (SELECT sum(delta) FROM tpcb.history);
--! end tpcb.accounts, tpcb.tellers, tpcb.branches, tpcb.history
--! script
BEGIN;
UPDATE tpcb.accounts SET abalance = abalance + -103 WHERE tenant_id = {k2} AND aid = 14;
SELECT abalance FROM tpcb.accounts WHERE tenant_id = {k2} AND aid = 14;
UPDATE tpcb.tellers SET tbalance = tbalance + -103 WHERE tenant_id = {k4} AND tid = 1;
UPDATE tpcb.branches SET bbalance = bbalance + -103 WHERE tenant_id = {k4};
INSERT INTO tpcb.history VALUES ({k4}, 1, 14, -103, '2026-02-01');
COMMIT;
SELECT (SELECT sum(abalance) FROM tpcb.accounts), (SELECT sum(tbalance) FROM tpcb.tellers), (SELECT sum(bbalance) FROM tpcb.branches), (SELECT sum(delta) FROM tpcb.history);
--! end tpcb.accounts, tpcb.tellers, tpcb.branches, tpcb.history
--! script
BEGIN;
UPDATE tpcb.accounts SET abalance = abalance + 104 WHERE tenant_id = {k1} AND aid = 15;
SELECT abalance FROM tpcb.accounts WHERE tenant_id = {k1} AND aid = 15;
UPDATE tpcb.tellers SET tbalance = tbalance + 104 WHERE tenant_id = {k5} AND tid = 1;
UPDATE tpcb.branches SET bbalance = bbalance + 104 WHERE tenant_id = {k5};
INSERT INTO tpcb.history VALUES ({k5}, 1, 15, 104, '2026-02-01');
ROLLBACK;
SELECT (SELECT sum(abalance) FROM tpcb.accounts), (SELECT sum(tbalance) FROM tpcb.tellers), (SELECT sum(bbalance) FROM tpcb.branches), (SELECT sum(delta) FROM tpcb.history);
--! end tpcb.accounts, tpcb.tellers, tpcb.branches, tpcb.history
--! script
BEGIN;
UPDATE tpcb.accounts SET abalance = abalance + -105 WHERE tenant_id = {k5} AND aid = 16;
SELECT abalance FROM tpcb.accounts WHERE tenant_id = {k5} AND aid = 16;
UPDATE tpcb.tellers SET tbalance = tbalance + -105 WHERE tenant_id = {k3} AND tid = 1;
UPDATE tpcb.branches SET bbalance = bbalance + -105 WHERE tenant_id = {k3};
INSERT INTO tpcb.history VALUES ({k3}, 1, 16, -105, '2026-02-01');
COMMIT;
SELECT (SELECT sum(abalance) FROM tpcb.accounts), (SELECT sum(tbalance) FROM tpcb.tellers), (SELECT sum(bbalance) FROM tpcb.branches), (SELECT sum(delta) FROM tpcb.history);
--! end tpcb.accounts, tpcb.tellers, tpcb.branches, tpcb.history
