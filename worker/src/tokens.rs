//! Whom the worker lets in: who shows one of some tokens.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use lacuna_channel::tokens::listed;

use crate::error::{Error, Result};

/// Most bytes of a file of tokens.
const MOST: u64 = 64 << 10;

/// What must not be shown to anybody, nor written to a log.
#[derive(Clone)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// The tokens that are good now. Of each the digest alone is kept: digests take the same time to compare wherever they
/// differ.
pub struct Tokens {
    given: Option<blake3::Hash>,
    file: Option<PathBuf>,
    of_file: RwLock<Vec<blake3::Hash>>,
}

impl Tokens {
    /// The token that was `given`, if any was, and those in the lines of a `file`. Of neither: anybody is let in.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the file cannot be read, or holds no token.
    pub fn new(given: Option<&Secret>, file: Option<&Path>) -> Result<Self> {
        let of_file = file.map(read).transpose()?.unwrap_or_default();
        Ok(Self {
            given: given.map(|Secret(token)| blake3::hash(token.as_bytes())),
            file: file.map(Path::to_owned),
            of_file: RwLock::new(of_file),
        })
    }

    /// Whether anybody is let in.
    pub fn are_none(&self) -> bool {
        self.given.is_none() && self.file.is_none()
    }

    /// Which of the tokens was shown, by its digest; none where it is none of them. Who shows nothing where nothing is asked for
    /// is somebody, too.
    pub fn admit(&self, shown: Option<&str>) -> Option<blake3::Hash> {
        if self.are_none() {
            return Some(blake3::hash(b""));
        }
        let shown = blake3::hash(shown?.as_bytes());
        let of_file = self.of_file.read().unwrap_or_else(PoisonError::into_inner);
        let all = of_file.iter().chain(&self.given);
        // All of them are looked at, whichever it is.
        let known = all.filter(|token| **token == shown).count();
        (known > 0).then_some(shown)
    }

    /// Reads the file again, and says whether its tokens are others now.
    ///
    /// # Errors
    /// As [`Self::new`]; those before then stay good.
    pub fn refresh(&self) -> Result<bool> {
        let Some(path) = &self.file else {
            return Ok(false);
        };
        let now = read(path)?;
        let mut known = self.of_file.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *known != now;
        *known = now;
        Ok(changed)
    }
}

/// The digests of a file's lines, but for empty ones and comments.
fn read(path: &Path) -> Result<Vec<blake3::Hash>> {
    let named = |reason: String| Error::Invalid(format!("{}: {reason}", path.display()));
    let failed = |e: std::io::Error| named(e.to_string());
    let len = std::fs::metadata(path).map_err(failed)?.len();
    if len > MOST {
        return Err(named(format!("{len} bytes of tokens; at most {MOST}")));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let tokens = listed(&text).map(|token| blake3::hash(token.as_bytes()));
    let tokens: Vec<blake3::Hash> = tokens.collect();
    match tokens.is_empty() {
        // Everybody would be let in.
        true => Err(named("there is no token in it".into())),
        false => Ok(tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_of_the_tokens_is_good_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens");
        std::fs::write(&file, "# ours\none\n\n  two  \n").unwrap();
        let given = Secret::from("given");
        let tokens = Tokens::new(Some(&given), Some(&file)).unwrap();
        for good in ["one", "two", "given"] {
            assert!(tokens.admit(Some(good)).is_some(), "{good}");
        }
        assert_ne!(tokens.admit(Some("one")), tokens.admit(Some("two")));
        for bad in ["", "# ours", "three", "one\n", "ONE", "one two"] {
            assert!(tokens.admit(Some(bad)).is_none(), "{bad}");
        }
        assert!(tokens.admit(None).is_none());
        let anybody = Tokens::new(None, None).unwrap();
        assert!(anybody.admit(None).is_some() && anybody.admit(Some("x")).is_some());
        assert_eq!(format!("{given:?}"), "Secret(..)");
    }

    #[test]
    fn tokens_change_while_the_worker_runs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens");
        std::fs::write(&file, "old\n").unwrap();
        let tokens = Tokens::new(None, Some(&file)).unwrap();
        assert!(!tokens.refresh().unwrap());
        // Both, until everybody has the new one.
        std::fs::write(&file, "old\nnew\n").unwrap();
        assert!(tokens.refresh().unwrap());
        assert!(tokens.admit(Some("old")).is_some() && tokens.admit(Some("new")).is_some());
        std::fs::write(&file, "new\n").unwrap();
        assert!(tokens.refresh().unwrap());
        assert!(tokens.admit(Some("old")).is_none());
        // An empty file lets nobody else in, and nobody out.
        std::fs::write(&file, "\n# none\n").unwrap();
        let error = tokens.refresh().unwrap_err().to_string();
        assert!(error.contains("no token"), "{error}");
        assert!(tokens.admit(Some("new")).is_some() && tokens.admit(None).is_none());
        assert!(Tokens::new(None, Some(&file)).is_err());
        std::fs::remove_file(&file).unwrap();
        assert!(tokens.refresh().is_err() && tokens.admit(Some("new")).is_some());
    }
}
