//! A worker's key, certificate and token, made where they are missing.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};
use ring::rand::{SecureRandom, SystemRandom};

use crate::error::{Error, Result};
use crate::pem;
use crate::pin::Pin;
use crate::server::Files;
use crate::tokens::listed;

/// The files of an identity, in a folder of their own that nobody else may read.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its certificate and key.
    pub files: Files,
    /// Tokens that it lets in, one a line.
    pub tokens: PathBuf,
    /// Whether any of it was made now.
    pub made: bool,
}

impl Identity {
    /// That in the folder `dir`; what is missing is made, for a machine of these `names`.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Content`], naming the file; [`Error::Certificate`] for a name that a certificate cannot hold.
    pub fn at(dir: &Path, names: &[String]) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| failed(dir, &e))?;
        let [certificate, key, tokens] =
            ["cert.pem", "key.pem", "tokens"].map(|name| dir.join(name));
        let mut made = write_new(&tokens, || Ok(format!("{}\n", token()?)))?;
        made |= write_new(&key, || Ok(generated()?.serialize_pem()))?;
        let certified = || {
            let text = pem::read(&key)?;
            let text = String::from_utf8(text).map_err(|_| pem::content(&key, "it is no text"))?;
            let pair = KeyPair::from_pem(&text)
                .map_err(|e| pem::content(&key, format!("no key for a certificate: {e}")))?;
            self_signed(&pair, names)
        };
        made |= write_new(&certificate, certified)?;
        Ok(Self {
            files: Files {
                certificate,
                key,
                client_authorities: None,
            },
            tokens,
            made,
        })
    }

    /// What a fleet file needs of a worker of the public key `pin`, with the first of its `tokens`, that others reach at `host`
    /// and `port`.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Content`], naming the file of the tokens.
    pub fn entry(tokens: &Path, pin: Pin, host: &str, port: u16) -> Result<String> {
        let text = String::from_utf8(pem::read(tokens)?);
        let text = text.map_err(|_| pem::content(tokens, "it is no text"))?;
        let token = listed(&text).next().map(|entry| entry.token);
        let token = token.ok_or_else(|| pem::content(tokens, "there is no token in it"))?;
        let host = match host.contains(':') {
            true => format!("[{host}]"),
            false => host.to_owned(),
        };
        Ok(format!(
            "[[worker]]\nurl = \"https://{host}:{port}\"\nprovider = \"WHOSE-MACHINE\"\ntoken = \"{token}\"\npin = \"{pin}\"\n"
        ))
    }
}

/// A token that nobody guesses: 32 bytes as hexadecimal digits.
fn token() -> Result<String> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::Certificate("the system has no random numbers".into()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn generated() -> Result<KeyPair> {
    KeyPair::generate().map_err(|e| Error::Certificate(e.to_string()))
}

/// A certificate for the key itself. It is known by its pin, so it may be old.
fn self_signed(key: &KeyPair, names: &[String]) -> Result<String> {
    let wrong = |e: rcgen::Error| Error::Certificate(format!("for {names:?}: {e}"));
    let mut params = CertificateParams::new(names.to_vec()).map_err(wrong)?;
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "lacuna-worker");
    Ok(params.self_signed(key).map_err(wrong)?.pem())
}

/// Writes what `make` gives where no file is; says whether it did. Nobody else may read it.
fn write_new(path: &Path, make: impl FnOnce() -> Result<String>) -> Result<bool> {
    if path.exists() {
        return Ok(false);
    }
    let text = make()?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match file.and_then(|mut file| {
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
    }) {
        Ok(()) => Ok(true),
        // Another was faster.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(failed(path, &e)),
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::File {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::server::Server;

    #[test]
    fn an_identity_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a/identity");
        let names = ["worker.example".to_owned(), "198.18.1.2".to_owned()];
        let first = Identity::at(&dir, &names).unwrap();
        assert!(first.made);
        let pin = Server::new(first.files.clone()).unwrap().pin();
        let token = std::fs::read_to_string(&first.tokens).unwrap();
        assert_eq!(token.trim().len(), 64);
        let again = Identity::at(&dir, &[]).unwrap();
        assert!(!again.made);
        assert_eq!(std::fs::read_to_string(&again.tokens).unwrap(), token);
        for (path, mode) in [
            (&dir, 0o700),
            (&first.files.key, 0o600),
            (&first.tokens, 0o600),
        ] {
            let is = std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(is, mode, "{}", path.display());
        }
        let entry = Identity::entry(&first.tokens, pin, "::1", 7700).unwrap();
        for part in ["https://[::1]:7700", token.trim(), &pin.to_string()] {
            assert!(entry.contains(part), "{entry}");
        }
        // The key stays where the certificate is made anew, and so does the pin.
        std::fs::remove_file(&first.files.certificate).unwrap();
        let renewed = Identity::at(&dir, &[]).unwrap();
        assert!(renewed.made);
        assert_eq!(Server::new(renewed.files).unwrap().pin(), pin);
        // Another folder has another key, and another token.
        let other = Identity::at(&folder.path().join("b"), &[]).unwrap();
        assert_ne!(Server::new(other.files).unwrap().pin(), pin);
        assert_ne!(std::fs::read_to_string(&other.tokens).unwrap(), token);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        std::fs::write(dir.join("key.pem"), "nothing").unwrap();
        let error = Identity::at(dir, &[]).unwrap_err().to_string();
        assert!(
            error.contains("key.pem") && !error.contains("nothing"),
            "{error}"
        );
        std::fs::remove_file(dir.join("key.pem")).unwrap();
        let error = Identity::at(dir, &["no name é".into()]).unwrap_err();
        assert!(error.to_string().contains("no name"), "{error}");
        let error = Identity::at(Path::new("/proc/nowhere"), &[]).unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere"), "{error}");
    }
}
