//! A number of bytes, as a flag has it.

use std::str::FromStr;

/// Units, and how many bytes each is.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// So many bytes: `500MB`, `20GB`, `64GiB`, or a number alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unit = UNITS.iter().find_map(|(unit, bytes)| {
            let number = text.strip_suffix(unit)?;
            Some((number, *bytes))
        });
        let (number, unit) = unit.unwrap_or((text, 1));
        let number: Option<u64> = number.trim().parse().ok();
        match number.and_then(|number| number.checked_mul(unit)) {
            Some(bytes @ 1..) => Ok(Self(bytes)),
            _ => Err(
                "a whole number of B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, such as 20GB".into(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_unit_or_none() {
        for (text, bytes) in [
            ("1", 1),
            ("7B", 7),
            ("3kB", 3_000),
            ("20GB", 20_000_000_000),
            ("20 GB", 20_000_000_000),
            ("2GiB", 2 << 30),
            ("1TB", 1_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for wrong in [
            "",
            "GB",
            "-1",
            "0",
            "1.5GB",
            "1gb",
            "99999999999TB",
            "1 GB GB",
        ] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
