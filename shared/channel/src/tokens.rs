//! Tokens in a file.

/// The tokens of a file's `text`, which has one a line; empty lines and those that begin with # hold none.
pub fn listed(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}
