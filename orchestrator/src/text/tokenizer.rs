//! CLIP's tokenizer: byte-level BPE over lower-cased words.

use std::collections::HashSet;
use std::path::Path;

use tokenizers::{AddedToken, Encoding, Tokenizer};

use super::chunk::Chunk;
use super::clip_words::{END_OF_WORD, clip_words};
use super::syntax::Run;
use super::tokenizer_config::Side;
use super::tokenizer_files::TokenizerFiles;
use crate::error::{Error, Result};

/// A token that stands for itself and others behind it.
#[derive(Debug)]
struct Vectors {
    token: String,
    all: String,
    /// Of the token itself.
    id: u32,
    number: usize,
}

/// Prompts to token ids.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    length: usize,
    bos: u32,
    eos: u32,
    pad: u32,
    /// Where a short prompt is filled up.
    padding: Side,
    /// Where a long prompt is cut.
    truncation: Side,
    /// Tokens of textual inversion with several vectors.
    vectors: Vec<Vectors>,
}

/// What a prompt has beyond its chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// In the prompt's words.
    text: String,
    tokens: usize,
    of: usize,
    place: &'static str,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            text,
            tokens,
            of,
            place,
        } = self;
        write!(
            f,
            "is too long: {tokens} of its {of} tokens, at its {place}, are ignored: {text:?}"
        )
    }
}

impl ClipTokenizer {
    /// Loads the tokenizer in `dir`: `tokenizer.json`, or `vocab.json` and `merges.txt`; with
    /// `tokenizer_config.json` and `special_tokens_map.json` where they are there.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] or [`lacuna_model::Error::Read`], naming the file.
    pub fn load(dir: &Path) -> Result<Self> {
        let files = TokenizerFiles::read(dir)?;
        let source = files.source.clone();
        Self::build(files).map_err(|reason| Error::tokenizer(&source, reason))
    }

    /// Loads the tokenizer in `dir` whose `tokenizer.json` says all of how words become tokens.
    ///
    /// # Errors
    /// As [`Self::load`]; where it does not put the start before a prompt and the end behind it.
    pub fn load_as_written(dir: &Path) -> Result<Self> {
        let files = TokenizerFiles::read_as_written(dir)?;
        let source = files.source.clone();
        let bad = |reason: String| Error::tokenizer(&source, reason);
        let tokenizer = Self::build(files).map_err(|e| bad(e.to_string()))?;
        let empty = tokenizer.tokenizer.encode("", true);
        let empty = empty.map_err(|e| bad(e.to_string()))?;
        match empty.get_ids() == [tokenizer.bos, tokenizer.eos] {
            true => Ok(tokenizer),
            false => Err(bad(
                "post_processor: only the start before a prompt and the end behind it are supported".into(),
            )),
        }
    }

    /// CLIP's own tokenizer, from the file in which its makers published it, `bpe_simple_vocab_16e6.txt.gz` (or the same
    /// unpacked).
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn of_clip(path: &Path) -> Result<Self> {
        let files = TokenizerFiles::of_clip(path)?;
        Self::build(files).map_err(|reason| Error::tokenizer(path, reason))
    }

    /// The same, which fills a short prompt up with `token`.
    ///
    /// # Errors
    /// [`Error::Prompt`] where there is no such token.
    pub fn padded_with(self, token: &str) -> Result<Self> {
        let id = self.tokenizer.token_to_id(token);
        let pad = id.ok_or_else(|| Error::Prompt(format!("there is no token {token:?}")))?;
        Ok(Self { pad, ..self })
    }

    fn build(files: TokenizerFiles) -> tokenizers::Result<Self> {
        let TokenizerFiles {
            vocabulary,
            merges,
            added,
            special,
            length,
            padding,
            truncation,
            split_special,
            written,
            source,
        } = files;
        let mut tokenizer = match written {
            Some(written) => *written,
            None => clip_words(vocabulary, merges, &special.unk.content)?,
        };

        for (id, token) in &added {
            tokenizer.add_tokens([token.clone()])?;
            // As in the reference: an id is the next one, whatever the file says.
            let got = tokenizer.token_to_id(&token.content);
            if let Some(got) = got.filter(|got| got != id) {
                tracing::warn!(
                    "{}: the added token {:?} gets the id {got}, not {id}",
                    source.display(),
                    token.content
                );
            }
        }
        let all = special.all.iter();
        let missing: Vec<AddedToken> = all
            .filter(|token| !added.values().any(|a| a.content == token.content))
            .cloned()
            .collect();
        tokenizer.add_special_tokens(missing)?;
        tokenizer.set_encode_special_tokens(split_special);

        let id = |token: &AddedToken| {
            tokenizer
                .token_to_id(&token.content)
                .ok_or_else(|| format!("special token {:?} has no id", token.content))
        };
        let (bos, eos, pad) = (id(&special.bos)?, id(&special.eos)?, id(&special.pad)?);
        Ok(Self {
            vectors: several_vectors(&tokenizer),
            tokenizer,
            length,
            bos,
            eos,
            pad,
            padding,
            truncation,
        })
    }

    /// Number of tokens that it knows.
    pub fn tokens(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Number of tokens `T` of every prompt, with start, end and padding.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The `T` token ids of a prompt: start, its tokens, end, padding (before them or behind, as the
    /// files say). Tokens beyond `T - 2` are left out, with a warning.
    ///
    /// # Errors
    /// [`Error::Prompt`] when the vocabulary has no token for a part of the prompt.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let (ids, left_out) = self.cut(prompt)?;
        if let Some(left_out) = left_out {
            tracing::warn!("{left_out}");
        }
        Ok(ids)
    }

    /// As [`Self::encode`], and what is left out.
    pub(super) fn cut(&self, prompt: &str) -> Result<(Vec<u32>, Option<LeftOut>)> {
        let whole = self.with_all_vectors(prompt)?;
        let encoding = self.tokenize(&whole)?;
        let tokens = encoding.get_ids();
        let of = tokens.len();
        let kept = of.min(self.room());
        let (tokens, place) = match self.truncation {
            Side::Right => (&tokens[..kept], "end"),
            Side::Left => (&tokens[of - kept..], "beginning"),
        };
        let left_out = match of - kept {
            0 => None,
            more => {
                // With places, which the fast way leaves out.
                let encoding = self.tokenizer.encode(whole.as_str(), false);
                let encoding = encoding.map_err(|e| Error::Prompt(e.to_string()))?;
                let places = encoding.get_offsets();
                let text = match self.truncation {
                    Side::Right => places.get(kept).and_then(|(at, _)| whole.get(*at..)),
                    Side::Left => places.get(more - 1).and_then(|(_, to)| whole.get(..*to)),
                };
                Some(LeftOut {
                    text: text.unwrap_or_default().trim().to_owned(),
                    tokens: more,
                    of,
                    place,
                })
            }
        };
        let ids = self.framed(tokens, [self.bos, self.eos, self.pad]);
        Ok((ids, left_out))
    }

    /// All of a prompt in chunks of `T` tokens; each of `sections` begins one. The vectors of an embedding stay together.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub(super) fn chunks(&self, sections: &[Vec<Run>]) -> Result<Vec<Chunk>> {
        let room = self.room();
        if room == 0 {
            let reason = format!("chunks of {} tokens have no room for one", self.length);
            return Err(Error::Prompt(reason));
        }
        let mut chunks = Vec::new();
        for (i, section) in sections.iter().enumerate() {
            let (mut ids, mut weights) = (Vec::new(), Vec::new());
            for Run { text, weight } in section {
                let encoding = self.tokenize(&self.with_all_vectors(text)?)?;
                let mut rest = encoding.get_ids();
                while let Some(first) = rest.first() {
                    let vectors = self.vectors.iter().find(|v| v.id == *first);
                    let together = vectors.map_or(1, |v| v.number).min(rest.len()).min(room);
                    if ids.len() + together > room {
                        let full = (std::mem::take(&mut ids), std::mem::take(&mut weights));
                        chunks.push(self.chunk(&full.0, &full.1));
                    }
                    let (next, behind) = rest.split_at(together);
                    ids.extend(next);
                    weights.extend(next.iter().map(|_| *weight));
                    rest = behind;
                }
            }
            let ends = i + 1 == sections.len() && !chunks.is_empty();
            if !(ids.is_empty() && ends) {
                chunks.push(self.chunk(&ids, &weights));
            }
        }
        Ok(chunks)
    }

    /// A chunk of these tokens.
    pub(super) fn chunk(&self, ids: &[u32], weights: &[f32]) -> Chunk {
        Chunk {
            ids: self.framed(ids, [self.bos, self.eos, self.pad]),
            weights: self.framed(weights, [1.0; 3]),
        }
    }

    /// The id of a token, if it is one.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Tokens between start and end.
    pub(super) fn room(&self) -> usize {
        self.length.saturating_sub(2)
    }

    /// `inner` between start and end, with padding to `T`.
    fn framed<V: Copy>(&self, inner: &[V], [start, end, pad]: [V; 3]) -> Vec<V> {
        let mut values = Vec::with_capacity(self.length);
        values.push(start);
        values.extend(inner);
        values.push(end);
        let padding = vec![pad; self.length.saturating_sub(values.len())];
        let parts = match self.padding {
            Side::Right => [values, padding],
            Side::Left => [padding, values],
        };
        parts.concat()
    }

    /// From now on knows `tokens`, as the reference adds those of textual inversion: they are found anywhere, whatever their
    /// case. Gives their ids.
    ///
    /// # Errors
    /// Why not, naming one that is a token already.
    pub(super) fn add(&mut self, tokens: Vec<String>) -> Result<Vec<u32>, String> {
        let added = self.tokenizer.get_added_tokens_decoder();
        for token in &tokens {
            let lower = token.to_lowercase();
            // A piece of words, or a whole one.
            let ended = format!("{lower}{END_OF_WORD}");
            let known = [token, &lower, &ended].map(|known| self.id(known).is_some());
            let alike = |other: &AddedToken| other.content.to_lowercase() == lower;
            if known.contains(&true) || added.values().any(alike) {
                return Err(format!(
                    "{token:?} is a token already; give it another name by FILE:TOKEN"
                ));
            }
        }
        let new: Vec<AddedToken> = tokens
            .iter()
            .map(|token| AddedToken::from(token, false))
            .collect();
        self.tokenizer.add_tokens(new).map_err(|e| e.to_string())?;
        self.vectors = several_vectors(&self.tokenizer);
        let id = |token: &String| {
            let id = self.tokenizer.token_to_id(token);
            id.ok_or_else(|| format!("{token:?} cannot be a token"))
        };
        tokens.iter().map(id).collect()
    }

    /// The words of a prompt that are more than one token, each once.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn split_words<'a>(&self, prompt: &'a str) -> Result<Vec<&'a str>> {
        let mut split = Vec::new();
        let words = prompt.split(|c: char| !(c.is_alphanumeric() || c == '\''));
        for word in words.filter(|word| !word.is_empty()) {
            if self.tokenize(word)?.len() > 1 && !split.contains(&word) {
                split.push(word);
            }
        }
        Ok(split)
    }

    /// The prompt with each token of textual inversion as all of its vectors.
    fn with_all_vectors(&self, prompt: &str) -> Result<String> {
        let mut whole = prompt.to_owned();
        if self.vectors.is_empty() {
            return Ok(whole);
        }
        // With the tokens' texts, which the fast way leaves out. A token that was found in lower case is
        // not the token with capitals, as in the reference.
        let encoding = self.tokenizer.encode(prompt, false);
        let encoding = encoding.map_err(|e| Error::Prompt(e.to_string()))?;
        let tokens = encoding.get_tokens();
        for vectors in self.vectors.iter().filter(|v| tokens.contains(&v.token)) {
            whole = whole.replace(&vectors.token, &vectors.all);
        }
        Ok(whole)
    }

    fn tokenize(&self, prompt: &str) -> Result<Encoding> {
        let encoding = self.tokenizer.encode_fast(prompt, false);
        encoding.map_err(|e| Error::Prompt(e.to_string()))
    }
}

/// Of the added tokens, those with a `token_1` beside them: `token token_1 token_2` and so on is what
/// they stand for.
fn several_vectors(tokenizer: &Tokenizer) -> Vec<Vectors> {
    let added = tokenizer.get_added_tokens_decoder();
    let names: HashSet<&str> = added.values().map(|token| token.content.as_str()).collect();
    let of = |(id, token): (&u32, &AddedToken)| {
        let token = &token.content;
        let numbered = (1usize..).map(|i| format!("{token}_{i}"));
        let more = numbered.take_while(|name| names.contains(name.as_str()));
        let all: Vec<String> = std::iter::once(token.clone()).chain(more).collect();
        (all.len() > 1).then(|| Vectors {
            token: token.clone(),
            id: *id,
            number: all.len(),
            all: all.join(" "),
        })
    };
    added.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::PromptSyntax;

    /// One whose tokens are letters, and which cuts at `length`.
    fn letters(length: usize) -> ClipTokenizer {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("merges.txt");
        std::fs::write(&path, "of letters\na b</w>\n").unwrap();
        let tokenizer = ClipTokenizer::of_clip(&path).unwrap();
        ClipTokenizer {
            length,
            ..tokenizer
        }
    }

    #[test]
    fn what_is_left_out_is_named() {
        let tokenizer = letters(6);
        let left_out = |tokenizer: &ClipTokenizer, prompt| tokenizer.cut(prompt).unwrap().1;
        assert_eq!(left_out(&tokenizer, "a ab c d"), None);
        let said = left_out(&tokenizer, "a ab c d, E  f").unwrap().to_string();
        assert!(
            said.contains("3 of its 7 tokens, at its end") && said.ends_with("\", E  f\""),
            "{said}"
        );
        let from_left = ClipTokenizer {
            truncation: Side::Left,
            ..tokenizer
        };
        let said = left_out(&from_left, "é ab c d e f").unwrap().to_string();
        assert!(
            said.contains("at its beginning") && said.contains("\"é ab\""),
            "{said}"
        );
    }

    #[test]
    fn chunks_are_filled_and_embeddings_stay_whole() {
        let mut tokenizer = letters(6);
        let own = tokenizer.add(vec!["<x>".into(), "<x>_1".into()]).unwrap();
        let id = |token: &str| tokenizer.id(token).unwrap();
        let (a, c) = (id("a</w>"), id("c</w>"));
        let [bos, eos] = [tokenizer.bos, tokenizer.eos];
        let chunks = |prompt: &str| {
            let sections = PromptSyntax::Weighted.sections(prompt).unwrap();
            let chunks = tokenizer.chunks(&sections).unwrap();
            assert!(
                chunks
                    .iter()
                    .all(|chunk| chunk.ids.len() == 6 && chunk.weights.len() == 6)
            );
            chunks
        };
        let ids = |prompt: &str| -> Vec<Vec<u32>> {
            chunks(prompt).into_iter().map(|chunk| chunk.ids).collect()
        };
        let full = vec![bos, a, a, a, a, eos];
        assert_eq!(ids("a a a a"), std::slice::from_ref(&full));
        assert_eq!(ids("a a a a c"), [full, vec![bos, c, eos, eos, eos, eos]]);
        let whole = [
            vec![bos, a, a, a, eos, eos],
            vec![bos, own[0], own[1], eos, eos, eos],
        ];
        assert_eq!(ids("a a a <x>"), whole);
        let empty = vec![bos, eos, eos, eos, eos, eos];
        let one = vec![bos, a, eos, eos, eos, eos];
        assert_eq!(ids("BREAK a BREAK"), [empty.clone(), one]);
        assert_eq!(ids(""), [empty]);
        let weights = &chunks("a (c <x>:2)")[0].weights;
        assert_eq!(weights, &[1.0, 1.0, 2.0, 2.0, 2.0, 1.0]);
    }

    #[test]
    fn a_token_is_added_once() {
        let mut tokenizer = letters(77);
        for word in ["ab", "Ab", "a", "ab</w>"] {
            let error = tokenizer.add(vec![word.into()]).unwrap_err();
            let named = format!("{word:?} is a token already");
            assert!(error.contains(&named), "{error}");
        }
        tokenizer.add(vec!["mood".into()]).unwrap();
        assert!(tokenizer.add(vec!["Mood".into()]).is_err());
    }
}
