//! The statements sent to PostgreSQL, and what its errors mean for money.
//!
//! [`outcome`] is PURE: an SQLSTATE in, "what do we know about the payments" out. [`connect`] opens connections, [`post`]
//! sends one batch, [`reads`] is the pool for everything else, and the rest are the statements of one resource each.

pub mod account_payments;
pub mod accounts;
pub mod connect;
pub mod keys;
pub mod outcome;
pub mod payments;
pub mod post;
pub mod reads;
pub mod settings;
pub mod tenants;
