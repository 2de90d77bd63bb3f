//! Peak signal-to-noise ratio.

use super::decode::Rgb8;
use super::same_size;
use crate::error::Result;

/// Bytes of which the squared differences still fit a u32.
const CHUNK: usize = 1 << 15;

/// `10 log10(255^2 / MSE)` over all channels of a pair, in dB; infinite when they are equal.
///
/// # Errors
/// [`Error::Sizes`](crate::Error::Sizes).
pub fn psnr(a: &Rgb8, b: &Rgb8) -> Result<f64> {
    same_size(a, b)?;
    let squares = |(a, b): (&[u8], &[u8])| squared_differences(a, b);
    let sum: u64 = a
        .bytes
        .chunks(CHUNK)
        .zip(b.bytes.chunks(CHUNK))
        .map(squares)
        .sum();
    let mse = sum as f64 / a.bytes.len() as f64;
    Ok(10.0 * (255.0 * 255.0 / mse).log10())
}

fn squared_differences(a: &[u8], b: &[u8]) -> u64 {
    let each = a
        .iter()
        .zip(b)
        .map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2));
    u64::from(each.sum::<u32>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(value: u8, len: usize) -> Rgb8 {
        Rgb8 {
            width: len,
            height: 1,
            bytes: vec![value; 3 * len],
        }
    }

    #[test]
    fn it_is_the_formula_up_to_the_largest_difference() {
        let db = psnr(&flat(10, 7), &flat(15, 7)).unwrap();
        assert_eq!(db, 10.0 * (65025.0f64 / 25.0).log10());
        // More values than a u32 could sum.
        assert_eq!(psnr(&flat(0, 50_000), &flat(255, 50_000)).unwrap(), 0.0);
    }

    #[test]
    fn equal_pictures_are_infinitely_alike() {
        assert_eq!(psnr(&flat(3, 4), &flat(3, 4)).unwrap(), f64::INFINITY);
    }

    #[test]
    fn other_sizes_are_named() {
        let error = psnr(&flat(3, 4), &flat(3, 5)).unwrap_err().to_string();
        assert!(error.contains("4x1") && error.contains("5x1"), "{error}");
    }
}
