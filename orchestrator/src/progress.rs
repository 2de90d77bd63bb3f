//! How far a long work is: a bar on a terminal, elsewhere a line now and then.

use std::fmt::Display;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::console::note;

/// Without a terminal: from one line to the next, and to the first.
const PAUSE: Duration = Duration::from_secs(30);

/// A work of many equal parts.
pub struct Progress {
    /// What the parts are, in the singular.
    part: &'static str,
    bar: ProgressBar,
    /// When a line is due; none on a terminal.
    due: Option<Mutex<Instant>>,
}

impl Progress {
    /// Nothing of `parts` is done; `part` is what they are, in the singular.
    pub fn new(part: &'static str, parts: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = match terminal {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(parts as u64), target);
        let template = format!("{{bar:30}} {part} {{pos}}/{{len}}, {{eta}} left, {{msg}}");
        // A mistake in the template only costs the style.
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        let due = (!terminal).then(|| Mutex::new(Instant::now() + PAUSE));
        Self { part, bar, due }
    }

    /// What is being done, beside the numbers.
    pub fn about(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }

    /// One part more is done.
    pub fn step(&self) {
        self.bar.inc(1);
        self.tell();
    }

    /// `done` parts of `parts` are done.
    pub fn reach(&self, done: usize, parts: usize) {
        self.bar.set_length(parts as u64);
        self.bar.set_position(done as u64);
        self.tell();
    }

    /// One part is not to be done: it says nothing about the time that is left.
    pub fn skip(&self) {
        let parts = self.bar.length().unwrap_or(1);
        self.bar.set_length(parts.saturating_sub(1));
    }

    /// A line beside the bar.
    pub fn note(&self, text: impl Display) {
        self.bar.suspend(|| note(text));
    }

    fn tell(&self) {
        let Some(due) = &self.due else {
            return;
        };
        let mut due = due.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now >= *due {
            *due = now + PAUSE;
            note(self.line());
        }
    }

    fn line(&self) -> String {
        let parts = self.bar.length().unwrap_or(0);
        let about = match self.bar.message() {
            text if text.is_empty() => text,
            text => format!(", {text}"),
        };
        let left = HumanDuration(self.bar.eta());
        let (part, done) = (self.part, self.bar.position());
        format!("{part} {done} of {parts}, about {left} left{about}")
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is() {
        let progress = Progress::new("step", 9);
        progress.reach(3, 10);
        progress.about("1.0 s a step");
        let line = progress.line();
        assert!(line.starts_with("step 3 of 10, about "), "{line}");
        assert!(line.ends_with(" left, 1.0 s a step"), "{line}");
        progress.skip();
        progress.step();
        assert!(progress.line().starts_with("step 4 of 9, "));
    }
}
