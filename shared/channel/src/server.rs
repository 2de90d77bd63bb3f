//! What a worker shows, and whom it lets in.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;

use crate::error::{Error, Result};
use crate::pin::Pin;
use crate::{VERSIONS, pem, provider};

/// The files of a server's side, in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// Its certificate, and those between that one and an authority's.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of which a client must have a certificate; without, clients need none.
    pub client_authorities: Option<PathBuf>,
}

/// A server's side, from files that may change.
pub struct Server {
    files: Files,
    now: RwLock<Now>,
}

/// What the files held when they were last read.
struct Now {
    bytes: Vec<Vec<u8>>,
    config: Arc<ServerConfig>,
    pin: Pin,
}

impl Server {
    /// From `files`.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Content`] or [`Error::Tls`], naming the file.
    pub fn new(files: Files) -> Result<Self> {
        let now = RwLock::new(files.read(&files.bytes()?)?);
        Ok(Self { files, now })
    }

    /// What new connections are met with.
    pub fn config(&self) -> Arc<ServerConfig> {
        // It is replaced whole or not at all.
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        now.config.clone()
    }

    /// The pin of its public key.
    pub fn pin(&self) -> Pin {
        self.now.read().unwrap_or_else(PoisonError::into_inner).pin
    }

    /// Reads the files again where they changed, and says whether they had. Those that are open stay as they are.
    ///
    /// # Errors
    /// As [`Self::new`]; what was read before then stays in force.
    pub fn refresh(&self) -> Result<bool> {
        let bytes = self.files.bytes()?;
        let same = self
            .now
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes
            == bytes;
        if same {
            return Ok(false);
        }
        let new = self.files.read(&bytes)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(true)
    }
}

impl Files {
    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.certificate, &self.key]
            .into_iter()
            .chain(&self.client_authorities)
    }

    fn bytes(&self) -> Result<Vec<Vec<u8>>> {
        self.paths().map(|path| pem::read(path)).collect()
    }

    fn read(&self, bytes: &[Vec<u8>]) -> Result<Now> {
        let of = |i: usize| bytes.get(i).map_or(&[][..], Vec::as_slice);
        let chain = pem::certificates(&self.certificate, of(0))?;
        let key = pem::key(&self.key, of(1))?;
        let pin = match chain.first() {
            Some(own) => Pin::of_certificate(own)?,
            None => return Err(pem::content(&self.certificate, "no certificate")),
        };
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(VERSIONS)?;
        let builder = match &self.client_authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = pem::roots(path, of(2))?;
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let verifier = verifier
                    .build()
                    .map_err(|e| pem::content(path, e.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => {
                pem::content(&self.key, "it is not the key of the certificate")
            }
            other => Error::Tls(other),
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Now {
            bytes: bytes.to_vec(),
            config: Arc::new(config),
            pin,
        })
    }
}
