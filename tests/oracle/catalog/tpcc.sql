-- The five transactions of TPC-C, at home and with remote warehouses, and its consistency conditions.
--! script
BEGIN;
SELECT w_tax FROM tpcc.warehouse WHERE tenant_id = {k1};
SELECT d_tax, d_next_o_id FROM tpcc.district WHERE tenant_id = {k1} AND d_id = 1 FOR UPDATE;
UPDATE tpcc.district SET d_next_o_id = d_next_o_id + 1 WHERE tenant_id = {k1} AND d_id = 1 RETURNING d_next_o_id;
SELECT c_discount, c_last, c_credit FROM tpcc.customer WHERE tenant_id = {k1} AND c_d_id = 1 AND c_id = 1;
INSERT INTO tpcc.orders VALUES ({k1}, 1, 6, 1, '2026-02-01 10:00:00', NULL, 3, 1);
INSERT INTO tpcc.new_order VALUES ({k1}, 1, 6);
SELECT i_price, i_name, i_data FROM tpcc.item WHERE i_id = 3;
SELECT s_quantity, s_data, s_dist FROM tpcc.stock WHERE tenant_id = {k1} AND s_i_id = 3 FOR UPDATE;
UPDATE tpcc.stock SET s_quantity = CASE WHEN s_quantity >= 5 + 10 THEN s_quantity - 5 ELSE s_quantity - 5 + 91 END, s_ytd = s_ytd + 5, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + 0 WHERE tenant_id = {k1} AND s_i_id = 3;
INSERT INTO tpcc.order_line SELECT {k1}, 1, 6, 1, i_id, 1, NULL, 5, i_price * 5, 'dist' FROM tpcc.item WHERE i_id = 3;
SELECT i_price, i_name, i_data FROM tpcc.item WHERE i_id = 7;
SELECT s_quantity, s_data, s_dist FROM tpcc.stock WHERE tenant_id = {k1} AND s_i_id = 7 FOR UPDATE;
UPDATE tpcc.stock SET s_quantity = CASE WHEN s_quantity >= 2 + 10 THEN s_quantity - 2 ELSE s_quantity - 2 + 91 END, s_ytd = s_ytd + 2, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + 0 WHERE tenant_id = {k1} AND s_i_id = 7;
INSERT INTO tpcc.order_line SELECT {k1}, 1, 6, 2, i_id, 1, NULL, 2, i_price * 2, 'dist' FROM tpcc.item WHERE i_id = 7;
SELECT i_price, i_name, i_data FROM tpcc.item WHERE i_id = 9;
SELECT s_quantity, s_data, s_dist FROM tpcc.stock WHERE tenant_id = {k1} AND s_i_id = 9 FOR UPDATE;
UPDATE tpcc.stock SET s_quantity = CASE WHEN s_quantity >= 1 + 10 THEN s_quantity - 1 ELSE s_quantity - 1 + 91 END, s_ytd = s_ytd + 1, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + 0 WHERE tenant_id = {k1} AND s_i_id = 9;
INSERT INTO tpcc.order_line SELECT {k1}, 1, 6, 3, i_id, 1, NULL, 1, i_price * 1, 'dist' FROM tpcc.item WHERE i_id = 9;
COMMIT;
SELECT count(*), sum(ol_amount) FROM tpcc.order_line WHERE tenant_id = {k1};
--! end tpcc.district, tpcc.orders, tpcc.new_order, tpcc.stock, tpcc.order_line
--! script
BEGIN;
SELECT w_tax FROM tpcc.warehouse WHERE tenant_id = {k1};
SELECT d_tax, d_next_o_id FROM tpcc.district WHERE tenant_id = {k1} AND d_id = 2 FOR UPDATE;
UPDATE tpcc.district SET d_next_o_id = d_next_o_id + 1 WHERE tenant_id = {k1} AND d_id = 2 RETURNING d_next_o_id;
SELECT c_discount, c_last, c_credit FROM tpcc.customer WHERE tenant_id = {k1} AND c_d_id = 2 AND c_id = 4;
INSERT INTO tpcc.orders VALUES ({k1}, 2, 6, 4, '2026-02-01 10:00:00', NULL, 5, 0);
INSERT INTO tpcc.new_order VALUES ({k1}, 2, 6);
SELECT i_price, i_name, i_data FROM tpcc.item WHERE i_id = 3;
SELECT s_quantity, s_data, s_dist FROM tpcc.stock WHERE tenant_id = {k2} AND s_i_id = 3 FOR UPDATE;
UPDATE tpcc.stock SET s_quantity = CASE WHEN s_quantity >= 5 + 10 THEN s_quantity - 5 ELSE s_quantity - 5 + 91 END, s_ytd = s_ytd + 5, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + 1 WHERE tenant_id = {k2} AND s_i_id = 3;
INSERT INTO tpcc.order_line SELECT {k1}, 2, 6, 1, i_id, 2, NULL, 5, i_price * 5, 'dist' FROM tpcc.item WHERE i_id = 3;
SELECT i_price, i_name, i_data FROM tpcc.item WHERE i_id = 7;
SELECT s_quantity, s_data, s_dist FROM tpcc.stock WHERE tenant_id = {k3} AND s_i_id = 7 FOR UPDATE;
UPDATE tpcc.stock SET s_quantity = CASE WHEN s_quantity >= 2 + 10 THEN s_quantity - 2 ELSE s_quantity - 2 + 91 END, s_ytd = s_ytd + 2, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + 1 WHERE tenant_id = {k3} AND s_i_id = 7;
INSERT INTO tpcc.order_line SELECT {k1}, 2, 6, 2, i_id, 3, NULL, 2, i_price * 2, 'dist' FROM tpcc.item WHERE i_id = 7;
SELECT i_price, i_name, i_data FROM tpcc.item WHERE i_id = 9;
SELECT s_quantity, s_data, s_dist FROM tpcc.stock WHERE tenant_id = {k1} AND s_i_id = 9 FOR UPDATE;
UPDATE tpcc.stock SET s_quantity = CASE WHEN s_quantity >= 1 + 10 THEN s_quantity - 1 ELSE s_quantity - 1 + 91 END, s_ytd = s_ytd + 1, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + 0 WHERE tenant_id = {k1} AND s_i_id = 9;
INSERT INTO tpcc.order_line SELECT {k1}, 2, 6, 3, i_id, 1, NULL, 1, i_price * 1, 'dist' FROM tpcc.item WHERE i_id = 9;
SELECT i_price, i_name, i_data FROM tpcc.item WHERE i_id = 12;
SELECT s_quantity, s_data, s_dist FROM tpcc.stock WHERE tenant_id = {k4} AND s_i_id = 12 FOR UPDATE;
UPDATE tpcc.stock SET s_quantity = CASE WHEN s_quantity >= 3 + 10 THEN s_quantity - 3 ELSE s_quantity - 3 + 91 END, s_ytd = s_ytd + 3, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + 1 WHERE tenant_id = {k4} AND s_i_id = 12;
INSERT INTO tpcc.order_line SELECT {k1}, 2, 6, 4, i_id, 4, NULL, 3, i_price * 3, 'dist' FROM tpcc.item WHERE i_id = 12;
SELECT i_price, i_name, i_data FROM tpcc.item WHERE i_id = 13;
SELECT s_quantity, s_data, s_dist FROM tpcc.stock WHERE tenant_id = {k5} AND s_i_id = 13 FOR UPDATE;
UPDATE tpcc.stock SET s_quantity = CASE WHEN s_quantity >= 3 + 10 THEN s_quantity - 3 ELSE s_quantity - 3 + 91 END, s_ytd = s_ytd + 3, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + 1 WHERE tenant_id = {k5} AND s_i_id = 13;
INSERT INTO tpcc.order_line SELECT {k1}, 2, 6, 5, i_id, 5, NULL, 3, i_price * 3, 'dist' FROM tpcc.item WHERE i_id = 13;
COMMIT;
SELECT count(*), sum(ol_amount) FROM tpcc.order_line WHERE tenant_id = {k1};
--! end tpcc.district, tpcc.orders, tpcc.new_order, tpcc.stock, tpcc.order_line
--! script
BEGIN;
SELECT w_tax FROM tpcc.warehouse WHERE tenant_id = {k2};
SELECT d_tax, d_next_o_id FROM tpcc.district WHERE tenant_id = {k2} AND d_id = 1 FOR UPDATE;
UPDATE tpcc.district SET d_next_o_id = d_next_o_id + 1 WHERE tenant_id = {k2} AND d_id = 1 RETURNING d_next_o_id;
SELECT c_discount, c_last, c_credit FROM tpcc.customer WHERE tenant_id = {k2} AND c_d_id = 1 AND c_id = 1;
INSERT INTO tpcc.orders VALUES ({k2}, 1, 6, 1, '2026-02-01 10:00:00', NULL, 2, 0);
INSERT INTO tpcc.new_order VALUES ({k2}, 1, 6);
SELECT i_price, i_name, i_data FROM tpcc.item WHERE i_id = 30;
SELECT s_quantity, s_data, s_dist FROM tpcc.stock WHERE tenant_id = {k2} AND s_i_id = 30 FOR UPDATE;
UPDATE tpcc.stock SET s_quantity = CASE WHEN s_quantity >= 9 + 10 THEN s_quantity - 9 ELSE s_quantity - 9 + 91 END, s_ytd = s_ytd + 9, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + 0 WHERE tenant_id = {k2} AND s_i_id = 30;
INSERT INTO tpcc.order_line SELECT {k2}, 1, 6, 1, i_id, 2, NULL, 9, i_price * 9, 'dist' FROM tpcc.item WHERE i_id = 30;
SELECT i_price, i_name, i_data FROM tpcc.item WHERE i_id = 1;
SELECT s_quantity, s_data, s_dist FROM tpcc.stock WHERE tenant_id = {k5} AND s_i_id = 1 FOR UPDATE;
UPDATE tpcc.stock SET s_quantity = CASE WHEN s_quantity >= 9 + 10 THEN s_quantity - 9 ELSE s_quantity - 9 + 91 END, s_ytd = s_ytd + 9, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + 1 WHERE tenant_id = {k5} AND s_i_id = 1;
INSERT INTO tpcc.order_line SELECT {k2}, 1, 6, 2, i_id, 5, NULL, 9, i_price * 9, 'dist' FROM tpcc.item WHERE i_id = 1;
COMMIT;
SELECT count(*), sum(ol_amount) FROM tpcc.order_line WHERE tenant_id = {k2};
--! end tpcc.district, tpcc.orders, tpcc.new_order, tpcc.stock, tpcc.order_line
--! script
BEGIN;
SELECT w_tax FROM tpcc.warehouse WHERE tenant_id = {k3};
SELECT d_tax, d_next_o_id FROM tpcc.district WHERE tenant_id = {k3} AND d_id = 1 FOR UPDATE;
UPDATE tpcc.district SET d_next_o_id = d_next_o_id + 1 WHERE tenant_id = {k3} AND d_id = 1 RETURNING d_next_o_id;
SELECT c_discount, c_last, c_credit FROM tpcc.customer WHERE tenant_id = {k3} AND c_d_id = 1 AND c_id = 5;
INSERT INTO tpcc.orders VALUES ({k3}, 1, 6, 5, '2026-02-01 10:00:00', NULL, 3, 0);
INSERT INTO tpcc.new_order VALUES ({k3}, 1, 6);
SELECT i_price, i_name, i_data FROM tpcc.item WHERE i_id = 2;
SELECT s_quantity, s_data, s_dist FROM tpcc.stock WHERE tenant_id = {k3} AND s_i_id = 2 FOR UPDATE;
UPDATE tpcc.stock SET s_quantity = CASE WHEN s_quantity >= 5 + 10 THEN s_quantity - 5 ELSE s_quantity - 5 + 91 END, s_ytd = s_ytd + 5, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + 0 WHERE tenant_id = {k3} AND s_i_id = 2;
INSERT INTO tpcc.order_line SELECT {k3}, 1, 6, 1, i_id, 3, NULL, 5, i_price * 5, 'dist' FROM tpcc.item WHERE i_id = 2;
SELECT i_price, i_name, i_data FROM tpcc.item WHERE i_id = 4;
SELECT s_quantity, s_data, s_dist FROM tpcc.stock WHERE tenant_id = {k1} AND s_i_id = 4 FOR UPDATE;
UPDATE tpcc.stock SET s_quantity = CASE WHEN s_quantity >= 5 + 10 THEN s_quantity - 5 ELSE s_quantity - 5 + 91 END, s_ytd = s_ytd + 5, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + 1 WHERE tenant_id = {k1} AND s_i_id = 4;
INSERT INTO tpcc.order_line SELECT {k3}, 1, 6, 2, i_id, 1, NULL, 5, i_price * 5, 'dist' FROM tpcc.item WHERE i_id = 4;
SELECT i_price, i_name, i_data FROM tpcc.item WHERE i_id = 99;
ROLLBACK;
SELECT count(*), sum(ol_amount) FROM tpcc.order_line WHERE tenant_id = {k3};
--! end tpcc.district, tpcc.orders, tpcc.new_order, tpcc.stock, tpcc.order_line
--! script
BEGIN;
UPDATE tpcc.warehouse SET w_ytd = w_ytd + 125.50 WHERE tenant_id = {k1};
SELECT w_name, w_tax FROM tpcc.warehouse WHERE tenant_id = {k1};
UPDATE tpcc.district SET d_ytd = d_ytd + 125.50 WHERE tenant_id = {k1} AND d_id = 1;
SELECT d_name FROM tpcc.district WHERE tenant_id = {k1} AND d_id = 1;
SELECT c_first, c_last, c_credit, c_discount, c_balance FROM tpcc.customer WHERE tenant_id = {k1} AND c_d_id = 1 AND c_id = 2 FOR UPDATE;
UPDATE tpcc.customer SET c_balance = c_balance - 125.50, c_ytd_payment = c_ytd_payment + 125.50, c_payment_cnt = c_payment_cnt + 1, c_data = left(c_id || ' ' || c_data, 500) WHERE tenant_id = {k1} AND c_d_id = 1 AND c_id = 2 RETURNING c_balance, c_data;
INSERT INTO tpcc.history VALUES ({k1}, 2, 1, 1, 1, '2026-02-01', 125.50, 'w d');
COMMIT;
SELECT sum(w_ytd) FROM tpcc.warehouse;
--! end tpcc.warehouse, tpcc.district, tpcc.customer, tpcc.history
--! script
BEGIN;
UPDATE tpcc.warehouse SET w_ytd = w_ytd + 125.50 WHERE tenant_id = {k1};
SELECT w_name, w_tax FROM tpcc.warehouse WHERE tenant_id = {k1};
UPDATE tpcc.district SET d_ytd = d_ytd + 125.50 WHERE tenant_id = {k1} AND d_id = 2;
SELECT d_name FROM tpcc.district WHERE tenant_id = {k1} AND d_id = 2;
SELECT count(c_id) FROM tpcc.customer WHERE tenant_id = {k3} AND c_d_id = 1 AND c_last = 'ABLE';
SELECT c_id, c_first, c_balance FROM tpcc.customer WHERE tenant_id = {k3} AND c_d_id = 1 AND c_last = 'ABLE' ORDER BY c_first, c_id FOR UPDATE;
SELECT c_first, c_last, c_credit, c_discount, c_balance FROM tpcc.customer WHERE tenant_id = {k3} AND c_d_id = 1 AND c_id = 2 FOR UPDATE;
UPDATE tpcc.customer SET c_balance = c_balance - 125.50, c_ytd_payment = c_ytd_payment + 125.50, c_payment_cnt = c_payment_cnt + 1, c_data = left(c_id || ' ' || c_data, 500) WHERE tenant_id = {k3} AND c_d_id = 1 AND c_id = 2 RETURNING c_balance, c_data;
INSERT INTO tpcc.history VALUES ({k1}, 2, 1, 3, 2, '2026-02-01', 125.50, 'w d');
COMMIT;
SELECT sum(w_ytd) FROM tpcc.warehouse;
--! end tpcc.warehouse, tpcc.district, tpcc.customer, tpcc.history
--! script
BEGIN;
UPDATE tpcc.warehouse SET w_ytd = w_ytd + 125.50 WHERE tenant_id = {k4};
SELECT w_name, w_tax FROM tpcc.warehouse WHERE tenant_id = {k4};
UPDATE tpcc.district SET d_ytd = d_ytd + 125.50 WHERE tenant_id = {k4} AND d_id = 1;
SELECT d_name FROM tpcc.district WHERE tenant_id = {k4} AND d_id = 1;
SELECT count(c_id) FROM tpcc.customer WHERE tenant_id = {k2} AND c_d_id = 2 AND c_last = 'ABLE';
SELECT c_id, c_first, c_balance FROM tpcc.customer WHERE tenant_id = {k2} AND c_d_id = 2 AND c_last = 'ABLE' ORDER BY c_first, c_id FOR UPDATE;
SELECT c_first, c_last, c_credit, c_discount, c_balance FROM tpcc.customer WHERE tenant_id = {k2} AND c_d_id = 2 AND c_id = 2 FOR UPDATE;
UPDATE tpcc.customer SET c_balance = c_balance - 125.50, c_ytd_payment = c_ytd_payment + 125.50, c_payment_cnt = c_payment_cnt + 1, c_data = left(c_id || ' ' || c_data, 500) WHERE tenant_id = {k2} AND c_d_id = 2 AND c_id = 2 RETURNING c_balance, c_data;
INSERT INTO tpcc.history VALUES ({k4}, 2, 2, 2, 1, '2026-02-01', 125.50, 'w d');
COMMIT;
SELECT sum(w_ytd) FROM tpcc.warehouse;
--! end tpcc.warehouse, tpcc.district, tpcc.customer, tpcc.history
--! script
BEGIN;
SELECT c_id, c_first, c_balance FROM tpcc.customer WHERE tenant_id = {k1} AND c_d_id = 1 AND c_last = 'OUGHT' ORDER BY c_first, c_id;
SELECT o_id, o_entry_d, o_carrier_id FROM tpcc.orders WHERE tenant_id = {k1} AND o_d_id = 1 AND o_c_id = 3 ORDER BY o_id DESC LIMIT 1;
SELECT ol_i_id, ol_supply_w_id, ol_quantity, ol_amount, ol_delivery_d FROM tpcc.order_line WHERE tenant_id = {k1} AND ol_d_id = 1 AND ol_o_id = (SELECT max(o_id) FROM tpcc.orders WHERE tenant_id = {k1} AND o_d_id = 1);
COMMIT;
--! end
--! script
BEGIN;
SELECT c_id, c_first, c_balance FROM tpcc.customer WHERE tenant_id = {k3} AND c_d_id = 2 AND c_last = 'OUGHT' ORDER BY c_first, c_id;
SELECT o_id, o_entry_d, o_carrier_id FROM tpcc.orders WHERE tenant_id = {k3} AND o_d_id = 2 AND o_c_id = 3 ORDER BY o_id DESC LIMIT 1;
SELECT ol_i_id, ol_supply_w_id, ol_quantity, ol_amount, ol_delivery_d FROM tpcc.order_line WHERE tenant_id = {k3} AND ol_d_id = 2 AND ol_o_id = (SELECT max(o_id) FROM tpcc.orders WHERE tenant_id = {k3} AND o_d_id = 2);
COMMIT;
--! end
--! script
BEGIN;
SELECT no_o_id FROM tpcc.new_order WHERE tenant_id = {k1} AND no_d_id = 1 ORDER BY no_o_id ASC LIMIT 1 FOR UPDATE;
DELETE FROM tpcc.new_order WHERE tenant_id = {k1} AND no_d_id = 1 AND no_o_id = 4;
SELECT o_c_id FROM tpcc.orders WHERE tenant_id = {k1} AND o_d_id = 1 AND o_id = 4;
UPDATE tpcc.orders SET o_carrier_id = 7 WHERE tenant_id = {k1} AND o_d_id = 1 AND o_id = 4 RETURNING o_c_id;
UPDATE tpcc.order_line SET ol_delivery_d = '2026-02-02' WHERE tenant_id = {k1} AND ol_d_id = 1 AND ol_o_id = 4;
SELECT sum(ol_amount) FROM tpcc.order_line WHERE tenant_id = {k1} AND ol_d_id = 1 AND ol_o_id = 4;
UPDATE tpcc.customer c SET c_balance = c_balance + (SELECT sum(ol_amount) FROM tpcc.order_line l WHERE l.tenant_id = c.tenant_id AND l.ol_d_id = c.c_d_id AND l.ol_o_id = 4), c_delivery_cnt = c_delivery_cnt + 1 WHERE c.tenant_id = {k1} AND c.c_d_id = 1 AND c.c_id = (SELECT o_c_id FROM tpcc.orders o WHERE o.tenant_id = c.tenant_id AND o.o_d_id = 1 AND o.o_id = 4) RETURNING c_id, c_balance;
SELECT no_o_id FROM tpcc.new_order WHERE tenant_id = {k1} AND no_d_id = 2 ORDER BY no_o_id ASC LIMIT 1 FOR UPDATE;
DELETE FROM tpcc.new_order WHERE tenant_id = {k1} AND no_d_id = 2 AND no_o_id = 4;
SELECT o_c_id FROM tpcc.orders WHERE tenant_id = {k1} AND o_d_id = 2 AND o_id = 4;
UPDATE tpcc.orders SET o_carrier_id = 7 WHERE tenant_id = {k1} AND o_d_id = 2 AND o_id = 4 RETURNING o_c_id;
UPDATE tpcc.order_line SET ol_delivery_d = '2026-02-02' WHERE tenant_id = {k1} AND ol_d_id = 2 AND ol_o_id = 4;
SELECT sum(ol_amount) FROM tpcc.order_line WHERE tenant_id = {k1} AND ol_d_id = 2 AND ol_o_id = 4;
UPDATE tpcc.customer c SET c_balance = c_balance + (SELECT sum(ol_amount) FROM tpcc.order_line l WHERE l.tenant_id = c.tenant_id AND l.ol_d_id = c.c_d_id AND l.ol_o_id = 4), c_delivery_cnt = c_delivery_cnt + 1 WHERE c.tenant_id = {k1} AND c.c_d_id = 2 AND c.c_id = (SELECT o_c_id FROM tpcc.orders o WHERE o.tenant_id = c.tenant_id AND o.o_d_id = 2 AND o.o_id = 4) RETURNING c_id, c_balance;
COMMIT;
--! end tpcc.new_order, tpcc.orders, tpcc.order_line, tpcc.customer
--! script
BEGIN;
SELECT no_o_id FROM tpcc.new_order WHERE tenant_id = {k4} AND no_d_id = 1 ORDER BY no_o_id ASC LIMIT 1 FOR UPDATE;
DELETE FROM tpcc.new_order WHERE tenant_id = {k4} AND no_d_id = 1 AND no_o_id = 4;
SELECT o_c_id FROM tpcc.orders WHERE tenant_id = {k4} AND o_d_id = 1 AND o_id = 4;
UPDATE tpcc.orders SET o_carrier_id = 7 WHERE tenant_id = {k4} AND o_d_id = 1 AND o_id = 4 RETURNING o_c_id;
UPDATE tpcc.order_line SET ol_delivery_d = '2026-02-02' WHERE tenant_id = {k4} AND ol_d_id = 1 AND ol_o_id = 4;
SELECT sum(ol_amount) FROM tpcc.order_line WHERE tenant_id = {k4} AND ol_d_id = 1 AND ol_o_id = 4;
UPDATE tpcc.customer c SET c_balance = c_balance + (SELECT sum(ol_amount) FROM tpcc.order_line l WHERE l.tenant_id = c.tenant_id AND l.ol_d_id = c.c_d_id AND l.ol_o_id = 4), c_delivery_cnt = c_delivery_cnt + 1 WHERE c.tenant_id = {k4} AND c.c_d_id = 1 AND c.c_id = (SELECT o_c_id FROM tpcc.orders o WHERE o.tenant_id = c.tenant_id AND o.o_d_id = 1 AND o.o_id = 4) RETURNING c_id, c_balance;
SELECT no_o_id FROM tpcc.new_order WHERE tenant_id = {k4} AND no_d_id = 2 ORDER BY no_o_id ASC LIMIT 1 FOR UPDATE;
DELETE FROM tpcc.new_order WHERE tenant_id = {k4} AND no_d_id = 2 AND no_o_id = 4;
SELECT o_c_id FROM tpcc.orders WHERE tenant_id = {k4} AND o_d_id = 2 AND o_id = 4;
UPDATE tpcc.orders SET o_carrier_id = 7 WHERE tenant_id = {k4} AND o_d_id = 2 AND o_id = 4 RETURNING o_c_id;
UPDATE tpcc.order_line SET ol_delivery_d = '2026-02-02' WHERE tenant_id = {k4} AND ol_d_id = 2 AND ol_o_id = 4;
SELECT sum(ol_amount) FROM tpcc.order_line WHERE tenant_id = {k4} AND ol_d_id = 2 AND ol_o_id = 4;
UPDATE tpcc.customer c SET c_balance = c_balance + (SELECT sum(ol_amount) FROM tpcc.order_line l WHERE l.tenant_id = c.tenant_id AND l.ol_d_id = c.c_d_id AND l.ol_o_id = 4), c_delivery_cnt = c_delivery_cnt + 1 WHERE c.tenant_id = {k4} AND c.c_d_id = 2 AND c.c_id = (SELECT o_c_id FROM tpcc.orders o WHERE o.tenant_id = c.tenant_id AND o.o_d_id = 2 AND o.o_id = 4) RETURNING c_id, c_balance;
COMMIT;
--! end tpcc.new_order, tpcc.orders, tpcc.order_line, tpcc.customer
--! script
BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT d_next_o_id FROM tpcc.district WHERE tenant_id = {k1} AND d_id = 1;
SELECT count(DISTINCT s_i_id) FROM tpcc.order_line l, tpcc.stock s WHERE l.tenant_id = {k1} AND l.ol_d_id = 1 AND l.ol_o_id < 6 AND l.ol_o_id >= 6 - 20 AND s.tenant_id = {k1} AND s.s_i_id = l.ol_i_id AND s.s_quantity < 50;
COMMIT;
--! end
--! script
BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT d_next_o_id FROM tpcc.district WHERE tenant_id = {k2} AND d_id = 2;
SELECT count(DISTINCT s_i_id) FROM tpcc.order_line l, tpcc.stock s WHERE l.tenant_id = {k2} AND l.ol_d_id = 2 AND l.ol_o_id < 6 AND l.ol_o_id >= 6 - 20 AND s.tenant_id = {k2} AND s.s_i_id = l.ol_i_id AND s.s_quantity < 50;
COMMIT;
--! end
SELECT w.w_ytd, sum(d.d_ytd) FROM tpcc.warehouse w JOIN tpcc.district d USING (tenant_id) GROUP BY w.tenant_id, w.w_ytd;
SELECT d.tenant_id, d.d_id, d.d_next_o_id - 1, max(o.o_id), max(n.no_o_id) FROM tpcc.district d JOIN tpcc.orders o ON o.tenant_id = d.tenant_id AND o.o_d_id = d.d_id JOIN tpcc.new_order n ON n.tenant_id = d.tenant_id AND n.no_d_id = d.d_id GROUP BY d.tenant_id, d.d_id, d.d_next_o_id;
SELECT max(no_o_id) - min(no_o_id) + 1 - count(*) FROM tpcc.new_order GROUP BY tenant_id, no_d_id;
SELECT sum(o_ol_cnt) - (SELECT count(*) FROM tpcc.order_line) FROM tpcc.orders;
SELECT o.tenant_id, o.o_d_id, o.o_id FROM tpcc.orders o WHERE (o.o_carrier_id IS NULL) <> EXISTS (SELECT 1 FROM tpcc.new_order n WHERE n.tenant_id = o.tenant_id AND n.no_d_id = o.o_d_id AND n.no_o_id = o.o_id);
SELECT c.tenant_id, c.c_balance, (SELECT sum(h_amount) FROM tpcc.history h WHERE h.tenant_id = c.tenant_id AND h.h_c_id = c.c_id) FROM tpcc.customer c WHERE c.c_id = 1;
SELECT i.i_id, sum(l.ol_quantity) FROM tpcc.item i LEFT JOIN tpcc.order_line l ON l.ol_i_id = i.i_id GROUP BY i.i_id ORDER BY 2 DESC NULLS LAST, 1 LIMIT 10;
