//! What the service is about, as values. PURE: no tokio, no clock, no socket, no SQL.

pub mod account;
pub mod code;
pub mod currency;
pub mod ids;
pub mod metadata;
pub mod money;
pub mod payment;
pub mod request;
pub mod rule;
pub mod tenant;
pub mod validate;
