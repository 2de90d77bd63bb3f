//! Prompt files: lines of text, a CSV file with a column of captions, or COCO's captions.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// The prompts of a file, in its order; in place of one that cannot be read, why.
pub type Prompts = Vec<Result<String, String>>;

/// Reads `path` by its ending: `.csv` has captions in `column`, `.json` is COCO's captions (of each image
/// the first one), and anything else has one prompt a line, where empty lines do not count.
///
/// # Errors
/// [`Error::Input`] when the file cannot be read as that, has no such column, or holds no prompt.
pub fn read(path: &Path, column: &str) -> Result<Prompts> {
    let refuse = |reason: String| Error::Input {
        path: path.to_owned(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|e| refuse(e.to_string()))?;
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    let prompts = match ending.to_str() {
        Some("csv") => of_csv(&bytes, column),
        Some("json") => of_coco(&bytes),
        _ => Ok(of_lines(&bytes)),
    };
    let prompts = prompts.map_err(refuse)?;
    if prompts.is_empty() {
        return Err(refuse("there is no prompt in it".into()));
    }
    Ok(prompts)
}

/// One prompt a line, where empty lines do not count.
pub fn of_lines(bytes: &[u8]) -> Prompts {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    let full = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    full.map(|(i, line)| match std::str::from_utf8(line) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(_) => Err(format!("line {} is no UTF-8", i + 1)),
    })
    .collect()
}

fn of_csv(bytes: &[u8], column: &str) -> Result<Prompts, String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(bytes);
    let header = reader.headers().map_err(|e| e.to_string())?.clone();
    let named = |name: &str| name.trim().eq_ignore_ascii_case(column);
    let Some(at) = header.iter().position(named) else {
        let names = header.iter().collect::<Vec<_>>().join(", ");
        return Err(format!(
            "it has no column {column:?} but {names}; name one with --caption-column"
        ));
    };
    let prompt = |(i, record): (usize, csv::Result<csv::StringRecord>)| {
        let record = record.map_err(|e| format!("row {}: {e}", i + 1))?;
        let caption = record.get(at).map(str::trim).unwrap_or_default();
        match caption {
            "" => Err(format!("row {} has no caption", i + 1)),
            caption => Ok(caption.to_owned()),
        }
    };
    Ok(reader.records().enumerate().map(prompt).collect())
}

/// What is read of COCO's `captions_*.json`.
#[derive(Deserialize)]
struct Coco {
    annotations: Vec<Value>,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: u64,
    caption: String,
}

fn of_coco(bytes: &[u8]) -> Result<Prompts, String> {
    let coco: Coco = serde_json::from_slice(bytes)
        .map_err(|e| format!("it is not COCO's captions (a list \"annotations\"): {e}"))?;
    let mut seen = HashSet::new();
    let each = coco.annotations.into_iter().enumerate();
    Ok(each
        .filter_map(|(i, annotation)| {
            let annotation = match Annotation::deserialize(annotation) {
                Ok(annotation) => annotation,
                Err(e) => return Some(Err(format!("annotation {}: {e}", i + 1))),
            };
            let image = annotation.image_id;
            seen.insert(image).then(|| match annotation.caption.trim() {
                "" => Err(format!("image {image} has no caption")),
                caption => Ok(caption.to_owned()),
            })
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_file(name: &str, bytes: &[u8]) -> Result<Prompts, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read(&path, "caption").map_err(|e| e.to_string())
    }

    #[test]
    fn each_kind_of_file_gives_its_captions_in_order() {
        let want =
            |texts: &[&str]| -> Prompts { texts.iter().map(|t| Ok(String::from(*t))).collect() };
        let lines = read_file("a.txt", b"a red, round circle\r\n\n  two \n").unwrap();
        assert_eq!(lines, want(&["a red, round circle", "two"]));
        let csv = b"\xef\xbb\xbfid,Caption\n1,\"a \"\"red\"\"\ncircle, small\"\n2,two\n";
        let csv = read_file("a.csv", csv).unwrap();
        assert_eq!(csv, want(&["a \"red\"\ncircle, small", "two"]));
        let coco = br#"{"images": [], "annotations": [
            {"image_id": 7, "id": 1, "caption": "a dog "}, {"image_id": 7, "id": 2, "caption": "a hound"},
            {"image_id": 3, "id": 9, "caption": "a cat"}]}"#;
        let coco = read_file("a.JSON", coco).unwrap();
        assert_eq!(coco, want(&["a dog", "a cat"]));
    }

    #[test]
    fn a_bad_prompt_is_named_in_its_place() {
        let lines = read_file("a.txt", b"one\n\xff\xfe\nthree").unwrap();
        assert_eq!(lines[1], Err("line 2 is no UTF-8".into()));
        assert_eq!(lines[2], Ok("three".into()));
        let csv = read_file("a.csv", b"id,caption\n1,one\n2\n3, \n4,four\n").unwrap();
        assert_eq!(csv[1], Err("row 2 has no caption".into()));
        assert_eq!(csv[2], Err("row 3 has no caption".into()));
        assert_eq!(csv[3], Ok("four".into()));
        let coco = br#"{"annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 2},
            {"image_id": 3, "caption": ""}, {"image_id": 4, "caption": "four"}]}"#;
        let coco = read_file("a.json", coco).unwrap();
        let reason = coco[1].clone().unwrap_err();
        assert!(
            reason.contains("annotation 2") && reason.contains("caption"),
            "{reason}"
        );
        assert_eq!(coco[2], Err("image 3 has no caption".into()));
        assert_eq!(coco[3], Ok("four".into()));
    }

    #[test]
    fn a_file_without_prompts_is_named_with_the_reason() {
        for (name, bytes, part) in [
            ("a.txt", &b" \n\n"[..], "no prompt"),
            ("a.csv", b"caption\n", "no prompt"),
            (
                "a.csv",
                b"id,text\n1,one\n",
                "no column \"caption\" but id, text",
            ),
            ("a.json", b"[1]", "COCO"),
            ("a.json", b"{\"annotations\": []}", "no prompt"),
        ] {
            let error = read_file(name, bytes).unwrap_err();
            assert!(error.contains(part) && error.contains(name), "{error}");
        }
    }
}
