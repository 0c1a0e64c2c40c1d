-- TPC-H: customers belong to tenants, orders and their lines to the customer's; the rest are reference tables.
CREATE TABLE tpch.region (r_regionkey int PRIMARY KEY, r_name char(25) NOT NULL, r_comment varchar(152));
CREATE TABLE tpch.nation (n_nationkey int PRIMARY KEY, n_name char(25) NOT NULL, n_regionkey int NOT NULL, n_comment varchar(152));
CREATE TABLE tpch.part (p_partkey int PRIMARY KEY, p_name varchar(55) NOT NULL, p_mfgr char(25) NOT NULL, p_brand char(10) NOT NULL,
    p_type varchar(25) NOT NULL, p_size int NOT NULL, p_container char(10) NOT NULL, p_retailprice numeric(15, 2) NOT NULL, p_comment varchar(23));
CREATE TABLE tpch.supplier (s_suppkey int PRIMARY KEY, s_name char(25) NOT NULL, s_address varchar(40) NOT NULL, s_nationkey int NOT NULL,
    s_phone char(15) NOT NULL, s_acctbal numeric(15, 2) NOT NULL, s_comment varchar(101) NOT NULL);
CREATE TABLE tpch.partsupp (ps_partkey int NOT NULL, ps_suppkey int NOT NULL, ps_availqty int NOT NULL, ps_supplycost numeric(15, 2) NOT NULL,
    ps_comment varchar(199), PRIMARY KEY (ps_partkey, ps_suppkey));
CREATE TABLE tpch.customer (tenant_id uuid NOT NULL, c_custkey int NOT NULL, c_name varchar(25) NOT NULL, c_address varchar(40) NOT NULL,
    c_nationkey int NOT NULL, c_phone char(15) NOT NULL, c_acctbal numeric(15, 2) NOT NULL, c_mktsegment char(10) NOT NULL,
    c_comment varchar(117) NOT NULL, PRIMARY KEY (tenant_id, c_custkey));
CREATE TABLE tpch.orders (tenant_id uuid NOT NULL, o_orderkey int NOT NULL, o_custkey int NOT NULL, o_orderstatus char(1) NOT NULL,
    o_totalprice numeric(15, 2) NOT NULL, o_orderdate date NOT NULL, o_orderpriority char(15) NOT NULL, o_clerk char(15) NOT NULL,
    o_shippriority int NOT NULL, o_comment varchar(79) NOT NULL, PRIMARY KEY (tenant_id, o_orderkey));
CREATE TABLE tpch.lineitem (tenant_id uuid NOT NULL, l_orderkey int NOT NULL, l_partkey int NOT NULL, l_suppkey int NOT NULL,
    l_linenumber int NOT NULL, l_quantity numeric(15, 2) NOT NULL, l_extendedprice numeric(15, 2) NOT NULL, l_discount numeric(15, 2) NOT NULL,
    l_tax numeric(15, 2) NOT NULL, l_returnflag char(1) NOT NULL, l_linestatus char(1) NOT NULL, l_shipdate date NOT NULL,
    l_commitdate date NOT NULL, l_receiptdate date NOT NULL, l_shipinstruct char(25) NOT NULL, l_shipmode char(10) NOT NULL,
    l_comment varchar(44) NOT NULL, PRIMARY KEY (tenant_id, l_orderkey, l_linenumber));

-- TPC-C: a tenant is a warehouse.
CREATE TABLE tpcc.item (i_id int PRIMARY KEY, i_im_id int, i_name varchar(24), i_price numeric(5, 2), i_data varchar(50));
CREATE TABLE tpcc.warehouse (tenant_id uuid PRIMARY KEY, w_id int, w_name varchar(10), w_tax numeric(4, 4), w_ytd numeric(12, 2));
CREATE TABLE tpcc.district (tenant_id uuid NOT NULL, d_id int NOT NULL, d_name varchar(10), d_tax numeric(4, 4), d_ytd numeric(12, 2),
    d_next_o_id int NOT NULL, PRIMARY KEY (tenant_id, d_id));
CREATE TABLE tpcc.customer (tenant_id uuid NOT NULL, c_d_id int NOT NULL, c_id int NOT NULL, c_first varchar(16), c_last varchar(16),
    c_credit char(2), c_discount numeric(4, 4), c_balance numeric(12, 2), c_ytd_payment numeric(12, 2), c_payment_cnt int,
    c_delivery_cnt int, c_data varchar(500), PRIMARY KEY (tenant_id, c_d_id, c_id));
CREATE TABLE tpcc.history (tenant_id uuid NOT NULL, h_c_id int, h_c_d_id int, h_c_w_id int, h_d_id int, h_date timestamp, h_amount numeric(6, 2), h_data varchar(24));
CREATE TABLE tpcc.orders (tenant_id uuid NOT NULL, o_d_id int NOT NULL, o_id int NOT NULL, o_c_id int, o_entry_d timestamp, o_carrier_id int,
    o_ol_cnt int, o_all_local int, PRIMARY KEY (tenant_id, o_d_id, o_id));
CREATE TABLE tpcc.new_order (tenant_id uuid NOT NULL, no_d_id int NOT NULL, no_o_id int NOT NULL, PRIMARY KEY (tenant_id, no_d_id, no_o_id));
CREATE TABLE tpcc.order_line (tenant_id uuid NOT NULL, ol_d_id int NOT NULL, ol_o_id int NOT NULL, ol_number int NOT NULL, ol_i_id int,
    ol_supply_w_id int, ol_delivery_d timestamp, ol_quantity int, ol_amount numeric(6, 2), ol_dist_info char(24),
    PRIMARY KEY (tenant_id, ol_d_id, ol_o_id, ol_number));
CREATE TABLE tpcc.stock (tenant_id uuid NOT NULL, s_i_id int NOT NULL, s_quantity int, s_dist char(24), s_ytd int, s_order_cnt int,
    s_remote_cnt int, s_data varchar(50), PRIMARY KEY (tenant_id, s_i_id));

-- TPC-B: a tenant is a branch.
CREATE TABLE tpcb.branches (tenant_id uuid PRIMARY KEY, bid int NOT NULL, bbalance int);
CREATE TABLE tpcb.tellers (tenant_id uuid NOT NULL, tid int NOT NULL, tbalance int, PRIMARY KEY (tenant_id, tid));
CREATE TABLE tpcb.accounts (tenant_id uuid NOT NULL, aid int NOT NULL, abalance int, PRIMARY KEY (tenant_id, aid));
CREATE TABLE tpcb.history (tenant_id uuid NOT NULL, tid int, aid int, delta int, mtime timestamp);
