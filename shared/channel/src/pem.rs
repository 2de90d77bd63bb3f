//! What PEM files hold.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, Result};

/// Most bytes of a file: a chain of certificates takes a few thousand.
const MOST: u64 = 1 << 20;

/// A file's bytes.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::File {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    let len = std::fs::metadata(path).map_err(failed)?.len();
    if len > MOST {
        return Err(content(path, format!("{len} bytes; at most {MOST}")));
    }
    std::fs::read(path).map_err(failed)
}

/// An error about what a file holds.
pub(crate) fn content(path: &Path, reason: impl Into<String>) -> Error {
    Error::Content {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

/// The certificates in a file's `bytes`, of which there is at least one.
pub(crate) fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|e| content(path, e.to_string()))?;
    match all.is_empty() {
        false => Ok(all),
        true => Err(content(path, "there is no certificate in it (PEM)")),
    }
}

/// The authorities in a file's `bytes`.
pub(crate) fn roots(path: &Path, bytes: &[u8]) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path, bytes)? {
        let added = roots.add(authority);
        added.map_err(|e| content(path, e.to_string()))?;
    }
    Ok(Arc::new(roots))
}

/// The private key in a file's `bytes`.
pub(crate) fn key(path: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(bytes).map_err(|_| {
        content(
            path,
            "there is no private key in it (PEM, without a password)",
        )
    })
}
