//! Picture files: PNG, JPEG and WebP to bytes of red, green and blue.

use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};

use crate::error::{Error, Result};

/// Most pixels of a file that is read: a phone's 50 megapixels, and some. Four colours of 16 bits take half a gigabyte then.
const MOST_PIXELS: u64 = 1 << 26;
/// What a decoder may allocate beside.
const MOST_BYTES: u64 = 1 << 30;

/// Bytes in rows of pixels, `[height, width, 3]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green and blue of each.
    pub rgb: Vec<u8>,
}

impl Pixels {
    /// Tells it from others: of what is seen, in whatever file it was.
    pub fn digest(&self) -> String {
        let mut hasher =
            blake3::Hasher::new_derive_key("lacuna 2026-11 picture: width, height, pixels");
        for side in [self.width, self.height] {
            hasher.update(&(side as u64).to_le_bytes());
        }
        hasher.update(&self.rgb);
        hasher.finalize().to_hex().to_string()
    }
}

/// Reads a picture as the reference's `load_image` does: turned as its EXIF data says, and without its opacity.
///
/// # Errors
/// [`Error::Input`], saying what of the file cannot be read.
pub fn read(path: &Path) -> Result<Pixels> {
    let wrong = |reason: String| Error::Input {
        path: path.to_owned(),
        reason,
    };
    let unreadable = |error: ImageError| match error {
        ImageError::Unsupported(_) => {
            wrong("it is no PNG, JPEG or WebP that can be read here; save it as PNG".into())
        }
        ImageError::Limits(_) => wrong("it takes too much memory; scale it down first".into()),
        other => wrong(format!("the picture is damaged: {other}")),
    };
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let mut reader = reader.map_err(|e| wrong(e.to_string()))?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MOST_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MOST_PIXELS {
        return Err(wrong(format!(
            "{width} x {height} are {pixels} pixels, at most {MOST_PIXELS} are read; scale it down first"
        )));
    }
    // What cannot be told of a file without such data is no reason to refuse it.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    image.apply_orientation(orientation);
    let rgb = image.into_rgb8();
    if rgb.is_empty() {
        return Err(wrong("the picture has no pixels".into()));
    }
    Ok(Pixels {
        width: rgb.width() as usize,
        height: rgb.height() as usize,
        rgb: rgb.into_raw(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PNG file of 8 x 8 pixels that promises `side` x `side`.
    fn promises(side: u32) -> Vec<u8> {
        let picture = crate::picture::encode_png([8, 8], png::ColorType::Rgb, &[0; 192], &[]);
        let mut bytes = picture.unwrap();
        // Of the header: its name, width and height, and behind five bytes more their checksum.
        bytes[16..20].copy_from_slice(&side.to_be_bytes());
        bytes[20..24].copy_from_slice(&side.to_be_bytes());
        let mut sum = flate2::Crc::new();
        sum.update(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&sum.sum().to_be_bytes());
        bytes
    }

    #[test]
    fn a_picture_is_told_from_its_like() {
        let of = |width, height, first| {
            let mut rgb = vec![0; 3 * width * height];
            rgb[0] = first;
            Pixels { width, height, rgb }.digest()
        };
        let one = of(2, 3, 0);
        assert_eq!(one, of(2, 3, 0));
        assert!(one != of(3, 2, 0) && one != of(2, 3, 1));
    }

    #[test]
    fn what_is_no_picture_is_named_and_nothing_is_allocated_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("photo.png");
        let mut cut = promises(8);
        cut.truncate(20);
        for (bytes, said) in [
            (b"BM what is this".to_vec(), "no PNG, JPEG or WebP"),
            (Vec::new(), "damaged"),
            (promises(60_000), "at most"),
            (promises(9), "damaged"),
            (cut, "damaged"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(
                error.contains("photo.png") && error.contains(said),
                "{error}"
            );
        }
        std::fs::remove_file(&path).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("photo.png"), "{error}");
    }
}
