//! Versions of the protocol, and the one that two sides have in common.
//!
//! A worker says in its `Info` which versions it speaks; the user picks the newest that both speak
//! and names it when a session opens. So a fleet can be upgraded one worker at a time.

use std::fmt;

/// The versions that this program speaks: from the one that gave a session's strip as `resident`, past the one
/// that names a session's kind, the one whose shares come in bands, the one whose weights may be halves and the one with
/// digests, to the one whose changes of four bits begin with eight.
pub const SPOKEN: Versions = Versions {
    lowest: 3,
    highest: PROTOCOL,
};

/// The newest version that this program speaks.
pub const PROTOCOL: u32 = 9;

/// The first version in which a session names its kind.
pub(crate) const WITH_KINDS: u32 = 4;

/// The first version that knows shares as they are now.
pub(crate) const WITH_SHARES: u32 = 6;

/// The first version in which shares are multiplied with weights in half precision.
pub(crate) const WITH_HALVES: u32 = 7;

/// The first version in which requests and answers say their digest.
pub const WITH_DIGESTS: u32 = 8;

/// The first version in which what [`Wire::Delta4`](lacuna_wire::Wire::Delta4) sends the changes of is sent in 8 bits, not 16.
pub(crate) const WITH_COARSE_BEGINNINGS: u32 = 9;

/// All versions from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest.
    pub lowest: u32,
    /// The newest.
    pub highest: u32,
}

impl Versions {
    /// Whether `version` is one of them.
    pub fn contains(self, version: u32) -> bool {
        (self.lowest..=self.highest).contains(&version)
    }

    /// The newest that is also one of `others`.
    pub fn newest_common(self, others: Self) -> Option<u32> {
        let newest = self.highest.min(others.highest);
        (self.contains(newest) && others.contains(newest)).then_some(newest)
    }

    /// Whether all of them are older than all of `others`.
    pub fn are_older_than(self, others: Self) -> bool {
        self.highest < others.lowest
    }
}

impl From<u32> for Versions {
    /// One alone.
    fn from(version: u32) -> Self {
        Self {
            lowest: version,
            highest: version,
        }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lowest == self.highest {
            true => write!(f, "{}", self.lowest),
            false => write!(f, "{} to {}", self.lowest, self.highest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sides_meet_at_the_newest_that_both_speak() {
        let versions = |lowest, highest| Versions { lowest, highest };
        let ours = versions(3, 5);
        for (theirs, common) in [
            (versions(3, 5), Some(5)),
            (versions(5, 9), Some(5)),
            (versions(1, 4), Some(4)),
            (4.into(), Some(4)),
            (versions(1, 2), None),
            (versions(6, 7), None),
            // Nonsense is no range.
            (versions(5, 3), None),
            (versions(9, 4), None),
        ] {
            assert_eq!(ours.newest_common(theirs), common, "{theirs:?}");
            assert_eq!(theirs.newest_common(ours), common, "{theirs:?}");
        }
        assert!(Versions::from(2).are_older_than(ours));
        assert!(!ours.are_older_than(2.into()));
        assert_eq!(ours.to_string(), "3 to 5");
        assert_eq!(Versions::from(4).to_string(), "4");
    }
}
