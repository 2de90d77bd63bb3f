//! Lines for the user of a command.
//!
//! A line that cannot be written is no reason to lose a picture: [`Console`] keeps the fault until the work is
//! done. `println!` would end the program in the middle of it.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::write_out;
use crate::error::{Error, Result};

/// The standard output, or the standard error where the former carries a file. Clones are the same console.
#[derive(Clone, Debug, Default)]
pub struct Console {
    to_stderr: bool,
    fault: Arc<Mutex<Option<std::io::Error>>>,
}

impl Console {
    /// Lines go to the standard output, unless it is `taken` by a file.
    pub fn new(taken: bool) -> Self {
        Self {
            to_stderr: taken,
            fault: Arc::default(),
        }
    }

    /// Writes a line (or several). After a fault nothing more is written.
    pub fn line(&self, text: impl Display) {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if fault.is_some() {
            return;
        }
        let line = format!("{text}\n");
        let written = match self.to_stderr {
            true => write_out(std::io::stderr().lock(), line.as_bytes()),
            false => write_out(std::io::stdout().lock(), line.as_bytes()),
        };
        *fault = written.err();
    }

    /// Says whether all lines were written. A reader that left early, as `head` does, is no fault.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn finish(&self) -> Result<()> {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        match &*fault {
            Some(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::Output {
                path: match self.to_stderr {
                    true => "the standard error".into(),
                    false => "the standard output".into(),
                },
                reason: e.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

/// Prints `text` as all that a command says.
///
/// # Errors
/// As [`Console::finish`].
pub fn print(text: impl Display) -> Result<()> {
    let console = Console::new(false);
    console.line(text);
    console.finish()
}

/// A line on the standard error, for what goes on beside the work. Where nobody can be told, nobody is.
pub fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
