//! The HTTP API.
//!
//! [`serve`] owns sockets and connections, [`front`] every request's beginning and end (request id, metrics, problem
//! bodies), [`routes`] is the table of all operations, from which the router and the OpenAPI document are made.
//! [`auth`], [`body`], [`change`], [`params`], [`page`], [`stored`] and [`view`] are what handlers share; the rest is one file a resource.
//!
//! Which fault wins when a request has several: authentication and scope, then the Idempotency-Key header, media type,
//! size, JSON syntax, shape, values, and the ledger last.

pub mod accounts;
pub mod api_keys;
pub mod auth;
pub mod body;
pub mod change;
pub mod front;
pub mod openapi;
pub mod ops;
pub mod page;
pub mod params;
pub mod payment_batch;
pub mod payment_types;
pub mod payments;
pub mod routes;
pub mod rules;
pub mod serve;
pub mod statements;
pub mod stored;
pub mod tenant_config;
pub mod tenants;
pub mod view;
