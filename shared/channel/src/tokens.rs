//! Tokens in a file.

/// A line of such a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What is shown.
    pub token: &'a str,
    /// What whoever shows it may do beside computing: words, which a worker knows.
    pub rights: &'a str,
}

/// The tokens of a file's `text`, which has one a line, with its rights behind it; empty lines and those that begin with # hold
/// none.
pub fn listed(text: &str) -> impl Iterator<Item = Entry<'_>> {
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| {
        let (token, rights) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rights = rights.trim_start();
        Entry { token, rights }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_token_and_its_rights() {
        let text = "# ours\none\n\n  two \tpush  \nthree push more\n";
        let found: Vec<_> = listed(text).map(|e| (e.token, e.rights)).collect();
        assert_eq!(
            found,
            [("one", ""), ("two", "push"), ("three", "push more")]
        );
    }
}
