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

/// What whoever shows a token may do beside computing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Push models to the worker's store, and remove them there.
    pub push: bool,
}

impl Rights {
    /// Those that the words behind a token name.
    fn read(words: &str) -> Result<Self, String> {
        let mut rights = Self::default();
        for word in words.split_whitespace() {
            match word {
                "push" => rights.push = true,
                // It may be a part of a token, which is for no log.
                _ => return Err("behind the token stands what is no right; there is: push".into()),
            }
        }
        Ok(rights)
    }
}

/// Whoever showed a token, by its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Of the token.
    pub digest: blake3::Hash,
    /// What it may do.
    pub rights: Rights,
}

/// The tokens that are good now. Of each the digest alone is kept: digests take the same time to compare wherever they
/// differ.
pub struct Tokens {
    given: Option<Admitted>,
    file: Option<PathBuf>,
    of_file: RwLock<Vec<Admitted>>,
}

impl Tokens {
    /// The token that was `given` with its rights, if any was, and those in the lines of a `file`. Of neither: anybody is let in,
    /// who then has no right.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the file cannot be read, or holds no token, or names a right that there is not.
    pub fn new(given: Option<(&Secret, Rights)>, file: Option<&Path>) -> Result<Self> {
        let of_file = file.map(read).transpose()?.unwrap_or_default();
        Ok(Self {
            given: given.map(|(Secret(token), rights)| Admitted {
                digest: blake3::hash(token.as_bytes()),
                rights,
            }),
            file: file.map(Path::to_owned),
            of_file: RwLock::new(of_file),
        })
    }

    /// Whether anybody is let in.
    pub fn are_none(&self) -> bool {
        self.given.is_none() && self.file.is_none()
    }

    /// Which of the tokens was shown; none where it is none of them. Who shows nothing where nothing is asked for is somebody,
    /// too. A token that is there twice has the rights of both.
    pub fn admit(&self, shown: Option<&str>) -> Option<Admitted> {
        if self.are_none() {
            return Some(Admitted {
                digest: blake3::hash(b""),
                rights: Rights::default(),
            });
        }
        let shown = blake3::hash(shown?.as_bytes());
        let of_file = self.of_file.read().unwrap_or_else(PoisonError::into_inner);
        let all = of_file.iter().chain(&self.given);
        // All of them are looked at, whichever it is.
        let known = all.filter(|token| token.digest == shown);
        known.copied().reduce(|one, other| Admitted {
            rights: Rights {
                push: one.rights.push | other.rights.push,
            },
            ..one
        })
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

/// A file's lines, but for empty ones and comments.
fn read(path: &Path) -> Result<Vec<Admitted>> {
    let named = |reason: String| Error::Invalid(format!("{}: {reason}", path.display()));
    let failed = |e: std::io::Error| named(e.to_string());
    let len = std::fs::metadata(path).map_err(failed)?.len();
    if len > MOST {
        return Err(named(format!("{len} bytes of tokens; at most {MOST}")));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let tokens = listed(&text).map(|entry| {
        Ok(Admitted {
            digest: blake3::hash(entry.token.as_bytes()),
            rights: Rights::read(entry.rights).map_err(named)?,
        })
    });
    let tokens = tokens.collect::<Result<Vec<_>>>()?;
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
        let tokens = Tokens::new(Some((&given, Rights::default())), Some(&file)).unwrap();
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
    fn a_right_stands_behind_its_token() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens");
        std::fs::write(&file, "paints\npushes \t push\ntwice\ntwice push\n").unwrap();
        let given = Secret::from("given");
        let may = |rights: Rights| {
            let tokens = Tokens::new(Some((&given, rights)), Some(&file)).unwrap();
            ["given", "paints", "pushes", "twice"]
                .map(|token| tokens.admit(Some(token)).unwrap().rights.push)
        };
        assert_eq!(may(Rights::default()), [false, false, true, true]);
        assert_eq!(may(Rights { push: true }), [true, false, true, true]);
        let tokens = Tokens::new(None, Some(&file)).unwrap();
        assert!(tokens.admit(Some("pushes push")).is_none());
        // Who need not show anything has no right.
        let anybody = Tokens::new(None, None).unwrap();
        assert!(!anybody.admit(Some("pushes")).unwrap().rights.push);
        // What may be a half of a token is not repeated.
        std::fs::write(&file, "a secret of three words\n").unwrap();
        let error = Tokens::new(None, Some(&file)).err().unwrap().to_string();
        assert!(
            error.contains("no right") && !error.contains("secret"),
            "{error}"
        );
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
