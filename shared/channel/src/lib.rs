//! The private channel between a user and a worker: TLS 1.3 by rustls, on both sides.
//!
//! - [`pin`]: a worker's public key, as a fleet file names it.
//! - [`server`]: what a worker shows, and whom it lets in.
//! - [`client`]: whom a user trusts, and what it shows.
//! - [`identity`]: a key and a certificate, made.
//! - [`tokens`]: tokens in a file.
//! - [`certificate`]: when a certificate is good.
//! - `pem`: what PEM files hold.
//! - [`error`]: everything that can go wrong.
#![forbid(unsafe_code)]

pub mod certificate;
pub mod client;
pub mod error;
pub mod identity;
mod pem;
pub mod pin;
pub mod server;
pub mod tokens;

use std::sync::Arc;

use rustls::SupportedProtocolVersion;
use rustls::crypto::{CryptoProvider, ring};

pub use error::{Error, Result};
pub use pin::Pin;

/// Nothing older is spoken: both sides are of this program, or stand before it.
static VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// What computes.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
