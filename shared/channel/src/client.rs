//! Whom a user trusts, and what it shows.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;
use x509_parser::parse_x509_certificate;

use crate::error::Result;
use crate::pin::Pin;
use crate::{VERSIONS, pem, provider};

/// Whom to trust, beside or in place of those whom the system trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// The public key that the other side must have. Whoever has it is who is meant, whatever its certificate is called and
    /// whoever made it.
    pub pin: Option<Pin>,
    /// Authorities that the other side's certificate must be of, in PEM.
    pub authorities: Option<PathBuf>,
    /// A certificate to show, and its key, in PEM.
    pub own: Option<[PathBuf; 2]>,
}

impl Trust {
    /// A client's side.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File), [`Error::Content`](crate::Error::Content) or
    /// [`Error::Tls`](crate::Error::Tls), naming the file.
    pub fn config(&self) -> Result<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(VERSIONS)?;
        let verifier = self.verifier()?;
        let builder = builder
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some([certificate, key]) => {
                let chain = pem::certificates(certificate, &pem::read(certificate)?)?;
                let key = pem::key(key, &pem::read(key)?)?;
                builder.with_client_auth_cert(chain, key)?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn verifier(&self) -> Result<Arc<dyn ServerCertVerifier>> {
        Ok(match (self.pin, self.of_authorities()?) {
            (Some(pin), named) => Arc::new(Pinned {
                pin,
                named,
                provider: provider(),
            }),
            (None, Some(named)) => named,
            (None, None) => Arc::new(Verifier::new(provider())?),
        })
    }

    fn of_authorities(&self) -> Result<Option<Arc<dyn ServerCertVerifier>>> {
        let Some(path) = &self.authorities else {
            return Ok(None);
        };
        let roots = pem::roots(path, &pem::read(path)?)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider());
        let verifier = verifier
            .build()
            .map_err(|e| pem::content(path, e.to_string()))?;
        Ok(Some(verifier))
    }
}

/// Trusts whoever has a key.
#[derive(Debug)]
struct Pinned {
    pin: Pin,
    /// Who must trust it, too.
    named: Option<Arc<dyn ServerCertVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let bad = |error| Err(rustls::Error::InvalidCertificate(error));
        let Ok((_, parsed)) = parse_x509_certificate(certificate) else {
            return bad(CertificateError::BadEncoding);
        };
        if self.pin != Pin::of_key(parsed.public_key().raw) {
            return bad(CertificateError::ApplicationVerificationFailure);
        }
        let (now_is, validity) = (now.as_secs(), parsed.validity());
        if u64::try_from(validity.not_after.timestamp()).is_ok_and(|end| now_is > end) {
            return bad(CertificateError::Expired);
        }
        if u64::try_from(validity.not_before.timestamp()).is_ok_and(|start| now_is < start) {
            return bad(CertificateError::NotValidYet);
        }
        match &self.named {
            Some(named) => named.verify_server_cert(certificate, between, name, ocsp, now),
            None => Ok(ServerCertVerified::assertion()),
        }
    }

    /// It is not spoken.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
