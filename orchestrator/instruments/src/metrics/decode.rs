//! Picture files as bytes of red, green and blue.

use std::io::Cursor;
use std::path::Path;

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use crate::error::{Error, Result};

/// Most pixels of a picture: a few bytes of a file can claim any size.
const MAX_PIXELS: usize = 1 << 27;

/// A picture of 8 bits a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb8 {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`.
    pub bytes: Vec<u8>,
}

impl Rgb8 {
    /// Reads a PNG or JPEG file, told apart by their first bytes. As Pillow's `convert("RGB")` does it:
    /// grey becomes three equal channels, a palette its colours, and transparency is dropped.
    ///
    /// # Errors
    /// [`Error::Input`] for a file that is not there, is neither, is damaged or truncated, has 16 bits a
    /// channel or four colours (CMYK), or more than 2^27 pixels.
    pub fn read(path: &Path) -> Result<Self> {
        let decoded = std::fs::read(path)
            .map_err(|e| e.to_string())
            .and_then(|bytes| Self::decode(&bytes));
        decoded.map_err(|reason| Error::Input {
            path: path.to_owned(),
            reason,
        })
    }

    /// Channel `c`, `[height, width]`, in 0..255.
    pub fn channel(&self, c: usize) -> Vec<f32> {
        let values = self.bytes.iter().skip(c).step_by(3);
        values.map(|byte| f32::from(*byte)).collect()
    }

    fn decode(file: &[u8]) -> Result<Self, String> {
        match file {
            [0x89, b'P', b'N', b'G', ..] => decode_png(file),
            [0xff, 0xd8, 0xff, ..] => decode_jpeg(file),
            [] => Err("the file is empty".into()),
            _ => Err("it is neither a PNG nor a JPEG file".into()),
        }
    }
}

fn decode_png(file: &[u8]) -> Result<Rgb8, String> {
    let damaged = |e: png::DecodingError| format!("the PNG is damaged: {e}");
    let mut decoder = png::Decoder::new(Cursor::new(file));
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(damaged)?;
    let (width, height) = reader.info().size();
    let (width, height) = (width as usize, height as usize);
    check_size(width, height)?;
    let (color, depth) = reader.output_color_type();
    if depth != png::BitDepth::Eight {
        return Err("it has 16 bits a channel; convert it to 8".into());
    }
    let len = reader.output_buffer_size().ok_or("it is too large")?;
    let mut samples = vec![0; len];
    reader.next_frame(&mut samples).map_err(damaged)?;
    let bytes = match color.samples() {
        1 => samples.iter().flat_map(|grey| [*grey; 3]).collect(),
        2 => {
            let (pairs, _) = samples.as_chunks::<2>();
            pairs.iter().flat_map(|[grey, _]| [*grey; 3]).collect()
        }
        3 => samples,
        _ => {
            let (pixels, _) = samples.as_chunks::<4>();
            pixels
                .iter()
                .flat_map(|[r, g, b, _]| [*r, *g, *b])
                .collect()
        }
    };
    Ok(Rgb8 {
        width,
        height,
        bytes,
    })
}

fn decode_jpeg(file: &[u8]) -> Result<Rgb8, String> {
    let damaged = |e: zune_jpeg::errors::DecodeErrors| format!("the JPEG is damaged: {e}");
    // Strict: a truncated file is an error, not a picture with a grey end.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers().map_err(damaged)?;
    let (width, height) = decoder.dimensions().ok_or("the JPEG has no size")?;
    check_size(width, height)?;
    if matches!(
        decoder.input_colorspace(),
        Some(ColorSpace::CMYK | ColorSpace::YCCK)
    ) {
        return Err("it has four colours (CMYK); convert it to RGB".into());
    }
    let bytes = decoder.decode().map_err(damaged)?;
    if bytes.len() != width * height * 3 {
        return Err("the JPEG did not decode to three colours".into());
    }
    Ok(Rgb8 {
        width,
        height,
        bytes,
    })
}

fn check_size(width: usize, height: usize) -> Result<(), String> {
    match width.checked_mul(height) {
        Some(1..=MAX_PIXELS) => Ok(()),
        _ => Err(format!(
            "it says to have {width}x{height} pixels; at least 1 and at most {MAX_PIXELS} are read"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(color: png::ColorType, depth: png::BitDepth, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = png::Encoder::new(&mut out, 2, 1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == png::ColorType::Indexed {
            encoder.set_palette(vec![9, 8, 7, 6, 5, 4]);
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(data).unwrap();
        writer.finish().unwrap();
        out
    }

    #[test]
    fn every_kind_of_png_becomes_three_colours() {
        use png::{BitDepth::Eight, ColorType};
        for (color, data, want) in [
            (ColorType::Grayscale, &[1, 2][..], [1, 1, 1, 2, 2, 2]),
            (ColorType::GrayscaleAlpha, &[1, 0, 2, 9], [1, 1, 1, 2, 2, 2]),
            (ColorType::Rgb, &[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
            (
                ColorType::Rgba,
                &[1, 2, 3, 0, 4, 5, 6, 9],
                [1, 2, 3, 4, 5, 6],
            ),
            (ColorType::Indexed, &[1, 0], [6, 5, 4, 9, 8, 7]),
        ] {
            let picture = Rgb8::decode(&png(color, Eight, data)).unwrap();
            assert_eq!((picture.width, picture.height), (2, 1));
            assert_eq!(picture.bytes, want, "{color:?}");
        }
    }

    #[test]
    fn what_is_no_picture_is_refused_with_a_reason() {
        let good = png(png::ColorType::Rgb, png::BitDepth::Eight, &[0; 6]);
        let wide = png(png::ColorType::Grayscale, png::BitDepth::Sixteen, &[0; 4]);
        let mut huge = good.clone();
        // The header's width; its checksum no longer fits either.
        huge[16..20].fill(0x7f);
        for (file, part) in [
            (&b""[..], "empty"),
            (b"GIF89a", "neither"),
            (&good[..good.len() / 2], "damaged"),
            (&huge, "damaged"),
            (&wide, "16 bits"),
            (&[0xff, 0xd8, 0xff, 0xe0, 0, 16], "damaged"),
        ] {
            let reason = Rgb8::decode(file).unwrap_err();
            assert!(reason.contains(part), "{part:?} is not in: {reason}");
        }
        assert!(check_size(1 << 20, 1 << 20).is_err());
        assert!(check_size(0, 4).is_err());
    }
}
