//! A worker's public key, as a fleet file names it.

use std::fmt;
use std::str::FromStr;

use ring::digest::{SHA256, digest};
use x509_parser::parse_x509_certificate;

use crate::error::{Error, Result};

/// SHA-256 of a certificate's public key (its `SubjectPublicKeyInfo`, RFC 7469 section 2.4): a certificate that is made anew
/// for the same key has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin([u8; 32]);

impl Pin {
    /// Of the public key in a certificate in DER.
    ///
    /// # Errors
    /// [`Error::Certificate`].
    pub fn of_certificate(certificate: &[u8]) -> Result<Self> {
        let (_, certificate) =
            parse_x509_certificate(certificate).map_err(|e| Error::Certificate(e.to_string()))?;
        Ok(Self::of_key(certificate.public_key().raw))
    }

    /// Of a public key in DER.
    pub fn of_key(key: &[u8]) -> Self {
        let mut pin = [0; 32];
        pin.copy_from_slice(digest(&SHA256, key).as_ref());
        Self(pin)
    }
}

impl FromStr for Pin {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Pin(text.to_owned());
        let digits = text.strip_prefix("sha256:").ok_or_else(wrong)?.as_bytes();
        let mut pin = [0; 32];
        let (pairs, rest) = digits.as_chunks::<2>();
        if pairs.len() != pin.len() || !rest.is_empty() {
            return Err(wrong());
        }
        let digit = |digit: u8| char::from(digit).to_digit(16);
        for (byte, [high, low]) in pin.iter_mut().zip(pairs) {
            let (high, low) = digit(*high).zip(digit(*low)).ok_or_else(wrong)?;
            *byte = (16 * high + low) as u8;
        }
        Ok(Self(pin))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_as_it_is_written() {
        let pin = Pin::of_key(b"key");
        assert_eq!(pin.to_string().parse::<Pin>().unwrap(), pin);
        assert_eq!(
            pin.to_string()
                .to_uppercase()
                .replace("SHA", "sha")
                .parse::<Pin>()
                .unwrap(),
            pin
        );
        let whole = pin.to_string();
        let (short, other) = (&whole[..70], whole.replace("sha256:", "md5:"));
        let signed = format!("sha256:+1{}", "0".repeat(62));
        for wrong in [
            short,
            &other,
            &signed,
            "",
            "sha256:",
            &format!("{whole}00"),
            "sha256:ééé",
        ] {
            assert!(wrong.parse::<Pin>().is_err(), "{wrong}");
        }
    }
}
