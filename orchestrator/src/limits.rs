//! How large what is asked for may be: no more than memory can hold, so that sums of sizes stay numbers.

use lacuna_model::memory;

use crate::error::{Error, Result};

/// Most columns, and most rows, of a picture.
pub const SIDE: usize = 16_384;

/// Most positions of latents, batch x rows x columns.
pub const POSITIONS: usize = 1 << 22;

/// Most of anything else that is counted.
pub const COUNT: usize = 100_000;

/// Most pictures of one run of `generate`.
pub const PICTURES: usize = 10_000;

/// Most pictures that are made side by side: as many as a worker has places for, if its `--max-sessions` does not say.
pub const AT_A_TIME: usize = 16;

/// Checks a number that a flag gives: from 1 to `most`.
///
/// # Errors
/// [`Error::Request`], naming the flag.
pub fn check(flag: &str, value: usize, most: usize) -> Result<()> {
    match value {
        1.. if value <= most => Ok(()),
        _ => Err(Error::Request(format!("{flag} {value}: from 1 to {most}"))),
    }
}

/// Checks a side of a picture, in pixels, that takes whole latents of `pixels` each.
///
/// # Errors
/// [`Error::Request`], naming the flag.
pub fn check_side(flag: &str, side: usize, pixels: usize) -> Result<()> {
    let refuse = |reason: String| {
        let reason = format!("{flag} {side} (--size is width x height): {reason}");
        Err(Error::Request(reason))
    };
    match side {
        _ if side > SIDE => refuse(format!("at most {SIDE} pixels")),
        1.. if side.is_multiple_of(pixels) => Ok(()),
        _ => refuse(format!("it must be a multiple of {pixels} with this model")),
    }
}

/// Checks latents of `[B, H, W]`, which `flags` size.
///
/// # Errors
/// [`Error::Request`], naming the flags.
pub fn check_latents(flags: &str, latents: [usize; 3]) -> Result<()> {
    let [batch, rows, columns] = latents;
    let positions = rows.checked_mul(columns).and_then(|n| n.checked_mul(batch));
    match positions {
        Some(n) if n <= POSITIONS => Ok(()),
        _ => Err(Error::Request(format!(
            "{flags}: latents of {batch} x {rows} x {columns} positions, at most {POSITIONS} in all"
        ))),
    }
}

/// Checks that this machine can hold what takes `bytes` at least; nothing where it does not say what it has.
///
/// # Errors
/// [`Error::Request`], naming the flag.
pub fn check_memory(flag: &str, bytes: usize) -> Result<()> {
    match memory::in_all() {
        Some(all) if bytes as u64 > all => Err(Error::Request(format!(
            "{flag}: it takes {} of memory at least, this machine has {}; give a smaller one",
            gigabytes(bytes as u64),
            gigabytes(all)
        ))),
        _ => Ok(()),
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_size_overflows() {
        for side in [0, 12, SIDE + 8, usize::MAX - 7, usize::MAX] {
            let error = check_side("--width", side, 8).unwrap_err().to_string();
            assert!(error.contains(&format!("--width {side}")), "{error}");
        }
        check_side("--width", SIDE, 8).unwrap();
        check_latents("--batch", [1, SIDE / 8, SIDE / 8]).unwrap();
        for latents in [
            [2, SIDE / 8, SIDE / 8],
            [usize::MAX; 3],
            [1 << 40, 1 << 40, 1],
        ] {
            let error = check_latents("--batch", latents).unwrap_err().to_string();
            assert!(error.starts_with("--batch: "), "{error}");
        }
        assert!(check("--count", 0, 5).is_err() && check("--count", 6, 5).is_err());
        check("--count", 5, 5).unwrap();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_no_machine_holds_is_refused_in_words() {
        let error = check_memory("--size", usize::MAX).unwrap_err().to_string();
        assert!(
            error.starts_with("--size: ") && error.contains(" GB of memory"),
            "{error}"
        );
        check_memory("--size", 1 << 20).unwrap();
    }
}
