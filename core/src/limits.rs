//! Every limit of the core in one place. Compile-time asserts state what must hold between them.

use std::time::Duration;

/// Payments in one posting statement. Costs per payment stop falling here (PostgreSQL CPU: 98 us at 8, 42 at 128, 35 at
/// 512), and one statement's locks stay short.
pub const BATCH_MAX: usize = 512;
/// Least time between the beginnings of two batches of one lane. At 2,000/s over four lanes batches of 12 instead of 6 cost
/// 8-10 % less CPU a payment, all components together, for 10 ms more at the median.
pub const LANE_INTERVAL_MS: u64 = 20;
/// Payments that are worth a statement: its own cost is then about half of the whole.
pub const GATHER_ENOUGH: usize = 8;
/// Intervals after which fewer than that are posted all the same.
pub const GATHER_INTERVALS: u32 = 2;
/// Looks in one interval at whether enough have gathered.
pub const GATHER_LOOKS: u32 = 4;
/// Payments waiting in one lane. At 5,000/s a full queue is well under a second of work.
pub const LANE_QUEUE: usize = 4_096;
/// Items in one request of a batch endpoint.
pub const BATCH_ITEMS_MAX: usize = 1_000;
/// Bytes of a request body of a single-item endpoint.
pub const BODY_MAX: usize = 64 * 1024;
/// Bytes of a request body of a batch endpoint.
pub const BATCH_BODY_MAX: usize = 2 * 1024 * 1024;
/// Client connections. Idle ones cost a few KiB each.
pub const CONNECTIONS_MAX: usize = 20_000;
/// Characters of an Idempotency-Key, as Stripe has it.
pub const IDEMPOTENCY_KEY_MAX: usize = 255;
/// How long the command topic keeps a command, and after which one is not executed any more.
pub const COMMAND_RETENTION: Duration = Duration::from_secs(3 * 24 * 3600);
/// How long a key is remembered. Must exceed the longest deferral of a queued command (H32).
pub const IDEMPOTENCY_RETENTION_S: i64 = 7 * 24 * 3600;
/// Largest amount of one payment, limit or rule in minor units: 15 digits, as the customer's decimal(15,2).
pub const AMOUNT_MAX_MINOR: i64 = 999_999_999_999_999;
/// Characters of an amount's text.
pub const AMOUNT_TEXT_MAX: usize = 32;
pub const NAME_MAX: usize = 200;
pub const ACCOUNT_NUMBER_MAX: usize = 50;
pub const REFERENCE_MAX: usize = 100;
pub const DESCRIPTION_MAX: usize = 500;
pub const CODE_MAX: usize = 50;
pub const METADATA_KEYS_MAX: usize = 50;
pub const METADATA_KEY_MAX: usize = 40;
pub const METADATA_VALUE_MAX: usize = 500;
/// Bytes of one tenant configuration document.
pub const TENANT_CONFIG_MAX: usize = 16 * 1024;
/// Rows of one page.
pub const PAGE_MAX: i64 = 100;
pub const PAGE_DEFAULT: i64 = 20;
pub const CURSOR_MAX: usize = 512;
/// Changes of cached rows that run at a time; see `http::change`.
pub const CHANGES_MAX: u32 = 1_024;
/// A revoked API key is refused everywhere after at most this many seconds: the life of an entry in the key cache.
pub const API_KEY_REVOCATION_S: u64 = 5;
pub const API_KEYS_CACHED: u64 = 20_000;
/// Shares of a poisoned batch a tenant may have before its payments go to the solo lane (H38).
pub const POISON_STRIKES: u32 = 3;
/// How long strikes are remembered and a tenant stays in the solo lane.
pub const POISON_MEMORY_S: u64 = 600;
pub const POISON_TENANTS_REMEMBERED: usize = 4_096;
/// Failed postings in a row that open a shard's circuit breaker.
pub const BREAKER_FAILURES: u32 = 5;
/// How long an open breaker refuses before it lets one batch try.
pub const BREAKER_OPEN_MS: u64 = 500;
/// First and longest pause between two tries of one batch; the real pause is random between half and all of it.
pub const RETRY_FIRST_MS: u64 = 20;
pub const RETRY_LONGEST_MS: u64 = 1_000;
/// A try that could not have this long any more is not begun: it would only make a known outcome an unknown one.
pub const RETRY_ATTEMPT_MIN_MS: u64 = 500;
/// A request header must arrive within this time, and an idle connection is closed after it.
pub const HEADER_TIMEOUT_S: u64 = 75;
/// A request body must arrive within this time.
pub const BODY_TIMEOUT_S: u64 = 10;
/// A peer that does not read its answers for this long is cut off (TCP_USER_TIMEOUT).
pub const UNREAD_ANSWER_TIMEOUT_S: u64 = 30;
/// One statement of a read or of a small write.
pub const STATEMENT_TIMEOUT_MS: u64 = 5_000;

const _: () = assert!(
    COMMAND_RETENTION.as_secs() + 24 * 3600 < IDEMPOTENCY_RETENTION_S as u64,
    "a command outlives its key: with a day for clocks and tries under way, it could be executed twice (H32)"
);
const _: () = assert!(BATCH_MAX <= LANE_QUEUE, "a batch must fit the queue it is taken from");
const _: () =
    assert!(BATCH_ITEMS_MAX <= LANE_QUEUE, "a full batch request of one tenant must fit an idle lane");
const _: () = assert!(RETRY_FIRST_MS < RETRY_LONGEST_MS);
const _: () =
    assert!(AMOUNT_MAX_MINOR < i64::MAX / BATCH_MAX as i64, "one batch cannot overflow one account");
