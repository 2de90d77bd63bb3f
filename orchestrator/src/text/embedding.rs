//! Embeddings of textual inversion (Gal et al. 2022): a few vectors that stand for a word of one's own.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use lacuna_model::weights::Checkpoint;
use lacuna_wire::HostTensor;

use crate::error::{Error, Result};

/// The one tensor of a web interface's file.
const ONE_ENCODER: &str = "emb_params";
/// Of SDXL's first and second text encoder.
const TWO_ENCODERS: [&str; 2] = ["clip_l", "clip_g"];
const ENDING: &str = ".safetensors";
/// Pickles, whatever their ending.
const UNSAFE: [&str; 5] = [".pt", ".pth", ".bin", ".ckpt", ".pkl"];

/// An embedding's file and the name that prompts call it by, as a flag gives them: `FILE` or `FILE:TOKEN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingFile {
    /// The file.
    pub path: PathBuf,
    /// None where it is the file's to say.
    pub token: Option<String>,
}

impl FromStr for EmbeddingFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A token may have colons, and so may a path.
        let endings = UNSAFE.iter().chain([&ENDING]);
        let ends = endings.filter_map(|ending| {
            let at = text.find(&format!("{ending}:"))?;
            Some(at + ending.len())
        });
        let (path, token) = match ends.min() {
            Some(end) => (&text[..end], Some(&text[end + 1..])),
            None => (text, None),
        };
        match (path, token.map(str::trim)) {
            ("", _) | (_, Some("")) => {
                Err("FILE or FILE:TOKEN, such as style.safetensors:my-style".into())
            }
            (path, token) => Ok(Self {
                path: path.into(),
                token: token.map(str::to_owned),
            }),
        }
    }
}

/// An embedding: vectors for the tokens `token`, `token_1` and so on.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// What prompts call it by.
    pub token: String,
    /// For each text encoder, `[N, D]`.
    pub vectors: Vec<HostTensor>,
    /// Of the file and the token.
    pub digest: String,
}

impl Embedding {
    /// Reads an embedding for text encoders of `widths`, of at most `most` vectors: `{"<token>": [N, D]}` as `diffusers` writes it,
    /// or `emb_params`, or `clip_l` and `clip_g`, as web interfaces and training scripts do.
    ///
    /// # Errors
    /// [`Error::Embedding`], naming the file and what of it does not fit; as [`Checkpoint::read`].
    pub fn open(file: &EmbeddingFile, widths: &[usize], most: usize) -> Result<Self> {
        let path = &file.path;
        let bad = |reason: String| Error::embedding(path, reason);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if UNSAFE
            .iter()
            .any(|ending| name.to_lowercase().ends_with(ending))
        {
            return Err(bad(format!(
                "such a file may run code when it is read; {}",
                conversion(&name)
            )));
        }
        let checkpoint = Checkpoint::open_file(path)?;
        let mut names: Vec<&str> = checkpoint.names().collect();
        names.sort_unstable();
        let stem = || {
            let stem = path.file_stem().unwrap_or_default();
            stem.to_string_lossy().into_owned()
        };
        let [first, second] = TWO_ENCODERS;
        let (named, keys) = match names[..] {
            [a, b] if [b, a] == TWO_ENCODERS => (stem(), vec![first, second]),
            [only] if TWO_ENCODERS.contains(&only) => {
                let reason = format!("it holds {only} alone; {first} and {second} are wanted");
                return Err(bad(reason));
            }
            [ONE_ENCODER] => (stem(), vec![ONE_ENCODER]),
            [token] => (token.to_owned(), vec![token]),
            _ => {
                let shown: Vec<&str> = names.iter().take(3).copied().collect();
                return Err(bad(format!(
                    "{} tensors ({}{}) are no embedding: one by the token's name, {ONE_ENCODER}, or {first} and {second} are",
                    names.len(),
                    shown.join(", "),
                    if names.len() > 3 { ", ..." } else { "" },
                )));
            }
        };
        if keys.len() != widths.len() {
            let number = |n| {
                if n == 1 {
                    "one text encoder"
                } else {
                    "two text encoders"
                }
            };
            return Err(bad(format!(
                "it is for {} ({}), the model has {}; look for the embedding made for this kind of model",
                number(keys.len()),
                keys.join(", "),
                number(widths.len())
            )));
        }
        let mut vectors = Vec::with_capacity(keys.len());
        for (key, width) in keys.into_iter().zip(widths) {
            // Held against what may be before anything is read.
            let (n, d) = match checkpoint.shape(key) {
                Some(&[d]) => (1, d),
                Some(&[n, d]) => (n, d),
                other => {
                    let shape = other.unwrap_or_default();
                    return Err(bad(format!(
                        "{key} has the shape {shape:?}, not [vectors, width]"
                    )));
                }
            };
            if d != *width {
                return Err(bad(format!(
                    "the vectors of {key} are {d} wide, the text encoder's {width}; it was made for another kind of model \
                     (768: Stable Diffusion 1, 1024: 2)"
                )));
            }
            if !(1..=most).contains(&n) {
                return Err(bad(format!(
                    "{key} has {n} vectors; 1 to {most} have room in a prompt"
                )));
            }
            let mut tensor = checkpoint.read(key)?;
            // The first thing that becomes of them is a norm.
            let squares: f32 = tensor.data.iter().map(|value| value * value).sum();
            if !squares.is_finite() {
                return Err(bad(format!(
                    "{key} holds values that are not finite, or so large that their squares are not"
                )));
            }
            tensor.shape = vec![n, d];
            vectors.push(tensor);
        }
        if vectors
            .iter()
            .any(|all| all.shape[0] != vectors[0].shape[0])
        {
            let numbers: Vec<usize> = vectors.iter().map(|all| all.shape[0]).collect();
            return Err(bad(format!(
                "{first} and {second} have {numbers:?} vectors"
            )));
        }
        let token = file.token.clone().unwrap_or(named);
        if token.trim().is_empty() {
            return Err(bad(
                "its token has no name; give it one by FILE:TOKEN".into()
            ));
        }
        let mut digest = blake3::Hasher::new_derive_key("lacuna 2026-11 embedding: file, token");
        digest.update(checkpoint.digest()?.as_bytes());
        digest.update(token.as_bytes());
        Ok(Self {
            token,
            vectors,
            digest: digest.finalize().to_hex().to_string(),
        })
    }

    /// The tokens that stand for its vectors.
    pub fn tokens(&self) -> impl Iterator<Item = String> {
        let n = self.vectors.first().map_or(0, |all| all.shape[0]);
        (0..n).map(|i| match i {
            0 => self.token.clone(),
            i => format!("{}_{i}", self.token),
        })
    }
}

/// How a pickle becomes a file that is taken.
fn conversion(name: &str) -> String {
    let stem = Path::new(name).file_stem().unwrap_or_default();
    let to = format!("{}{ENDING}", stem.to_string_lossy());
    format!(
        "convert it in Python where you trust it: d = torch.load({name:?}, weights_only=True); \
         d = {{\"{ONE_ENCODER}\": d[\"string_to_param\"][\"*\"]}} if \"string_to_param\" in d else d; \
         safetensors.torch.save_file({{k: v.detach().contiguous() for k, v in d.items()}}, {to:?})"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path, name: &str, tensors: &[(&str, &[usize])]) -> EmbeddingFile {
        let tensors = tensors.iter().map(|(key, shape)| {
            let data = (0..shape.iter().product()).map(|i: usize| i as f32);
            let tensor = HostTensor::new(shape.to_vec(), data.collect::<Vec<_>>()).unwrap();
            (*key, tensor)
        });
        let tensors: Vec<_> = tensors.collect();
        let tensors = tensors.iter().map(|(key, tensor)| (*key, tensor));
        let path = folder.join(name);
        std::fs::write(&path, lacuna_wire::to_safetensors(tensors, None).unwrap()).unwrap();
        EmbeddingFile { path, token: None }
    }

    #[test]
    fn a_flag_is_a_file_and_perhaps_a_token() {
        for (text, path, token) in [
            ("a.safetensors", "a.safetensors", None),
            ("d/a.safetensors:<x>", "d/a.safetensors", Some("<x>")),
            ("a.safetensors:b:c", "a.safetensors", Some("b:c")),
            ("a.pt:b", "a.pt", Some("b")),
            ("c:/a.safetensors", "c:/a.safetensors", None),
        ] {
            let file: EmbeddingFile = text.parse().unwrap();
            assert_eq!(file.path, PathBuf::from(path), "{text}");
            assert_eq!(file.token.as_deref(), token, "{text}");
        }
        for wrong in ["", "a.safetensors:", "a.safetensors: "] {
            assert!(wrong.parse::<EmbeddingFile>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_format_has_its_name_and_vectors() {
        let folder = tempfile::tempdir().unwrap();
        let open = |file: &EmbeddingFile, widths: &[usize]| Embedding::open(file, widths, 5);
        let file = written(folder.path(), "a.safetensors", &[("<toy>", &[4])]);
        let toy = open(&file, &[4]).unwrap();
        assert_eq!(
            (toy.token.as_str(), &toy.vectors[0].shape),
            ("<toy>", &vec![1, 4])
        );
        let named = EmbeddingFile {
            token: Some("own".into()),
            ..file.clone()
        };
        let named = open(&named, &[4]).unwrap();
        assert_eq!(named.token, "own");
        assert_ne!(named.digest, toy.digest);
        let file = written(
            folder.path(),
            "my-style.safetensors",
            &[("emb_params", &[2, 4])],
        );
        let style = open(&file, &[4]).unwrap();
        let tokens: Vec<String> = style.tokens().collect();
        assert_eq!(tokens, ["my-style", "my-style_1"]);
        let both = [("clip_g", &[2, 6][..]), ("clip_l", &[2, 4])];
        let file = written(folder.path(), "b.safetensors", &both);
        let both = open(&file, &[4, 6]).unwrap();
        let widths: Vec<usize> = both.vectors.iter().map(|all| all.shape[1]).collect();
        assert_eq!((both.token.as_str(), widths), ("b", vec![4, 6]));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |tensors: &[(&str, &[usize])], widths: &[usize]| {
            let file = written(folder.path(), "a.safetensors", tensors);
            let error = Embedding::open(&file, widths, 5).unwrap_err().to_string();
            assert!(error.contains("a.safetensors"), "{error}");
            error
        };
        for (tensors, widths, named) in [
            (
                &[("<toy>", &[3][..])][..],
                &[4][..],
                "3 wide, the text encoder's 4",
            ),
            (&[("<toy>", &[6, 4])], &[4], "6 vectors; 1 to 5"),
            (&[("<toy>", &[0, 4])], &[4], "0 vectors"),
            (&[("<toy>", &[1, 1, 4])], &[4], "[1, 1, 4]"),
            (&[("<toy>", &[1, 4])], &[4, 6], "two text encoders"),
            (
                &[("clip_g", &[1, 6]), ("clip_l", &[1, 4])],
                &[4],
                "the model has one",
            ),
            (
                &[("clip_g", &[2, 6]), ("clip_l", &[1, 4])],
                &[4, 6],
                "[1, 2] vectors",
            ),
            (&[("clip_g", &[1, 6])], &[4, 6], "clip_g alone"),
            (&[("x", &[1, 4]), ("y", &[1, 4])], &[4], "2 tensors (x, y)"),
            (&[("", &[1, 4])], &[4], "no name"),
        ] {
            let error = refused(tensors, widths);
            assert!(error.contains(named), "{named}: {error}");
        }
        for value in [f32::NAN, 1e30] {
            let file = EmbeddingFile {
                path: folder.path().join("large.safetensors"),
                token: None,
            };
            let tensor = HostTensor::new([1, 4], vec![1.0, value, 1.0, 1.0]).unwrap();
            let bytes = lacuna_wire::to_safetensors([("x", &tensor)], None).unwrap();
            std::fs::write(&file.path, bytes).unwrap();
            let error = Embedding::open(&file, &[4], 5).unwrap_err().to_string();
            assert!(error.contains("finite"), "{error}");
        }
        let pickle: EmbeddingFile = "old.PT".parse().unwrap();
        let error = Embedding::open(&pickle, &[4], 5).unwrap_err().to_string();
        assert!(
            error.contains("may run code") && error.contains("\"old.safetensors\""),
            "{error}"
        );
    }
}
