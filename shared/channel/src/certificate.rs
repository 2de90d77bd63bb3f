//! When a certificate is good.

use std::path::Path;

use x509_parser::parse_x509_certificate;

use crate::error::{Error, Result};
use crate::pem;

/// The time in which a certificate is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its first second, as the certificate's calendar says it.
    pub from: String,
    /// Its last.
    pub until: String,
    /// Whether that is now.
    pub now: bool,
}

impl Validity {
    /// Of the first certificate in the file `path`, in PEM.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Content`], naming the file; [`Error::Certificate`] where it cannot be read.
    pub fn of(path: &Path) -> Result<Self> {
        let all = pem::certificates(path, &pem::read(path)?)?;
        let first = all
            .first()
            .ok_or_else(|| pem::content(path, "no certificate"))?;
        let (_, certificate) =
            parse_x509_certificate(first).map_err(|e| Error::Certificate(e.to_string()))?;
        let validity = certificate.validity();
        Ok(Self {
            from: validity.not_before.to_string(),
            until: validity.not_after.to_string(),
            now: validity.is_valid(),
        })
    }
}
