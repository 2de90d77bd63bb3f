//! A scheme as text: `resident:wire=f16;workers=2`.

use std::sync::Arc;

use super::Scheme;
use super::registry::{Entry, find, names};

/// A scheme's name with options; those that are not the scheme's own are for whoever reads it.
#[derive(Clone, Debug)]
pub struct Spec {
    /// As it was written.
    pub text: String,
    /// The scheme.
    pub entry: &'static Entry,
    /// The scheme's options, each a name and a value.
    pub options: Vec<(String, String)>,
    /// All others, likewise.
    pub others: Vec<(String, String)>,
}

impl Spec {
    /// Reads a list. A comma begins the next one where a scheme follows it; other commas are of an option's value.
    ///
    /// # Errors
    /// A line that names the one that is off.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let mut each: Vec<String> = Vec::new();
        for piece in text.split(',') {
            let piece = piece.trim();
            match each.last_mut() {
                Some(last) if entry_of(piece).is_none() && last.contains(':') => {
                    last.push(',');
                    last.push_str(piece);
                }
                _ => each.push(piece.to_owned()),
            }
        }
        each.iter().map(|text| Self::parse(text)).collect()
    }

    /// Reads one.
    ///
    /// # Errors
    /// As [`Self::parse_list`].
    pub fn parse(text: &str) -> Result<Self, String> {
        let entry = entry_of(text)
            .ok_or_else(|| format!("{text:?}: it begins with none of {}", names()))?;
        let options = text.split_once(':').map_or("", |(_, options)| options);
        let given = options
            .split(';')
            .filter(|option| !option.trim().is_empty());
        let given = given.map(|option| match option.split_once('=') {
            Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
            None => Err(format!("{text:?}: {option:?} is no option=value")),
        });
        let known = entry.options();
        let (options, others) = given
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .partition(|(name, _)| known.contains(name));
        Ok(Self {
            text: text.to_owned(),
            entry,
            options,
            others,
        })
    }

    /// The scheme with its options.
    ///
    /// # Errors
    /// A line that names the value that is off.
    pub fn scheme(&self) -> Result<Arc<dyn Scheme>, String> {
        let scheme = self.entry.with_options(&self.options);
        scheme.map_err(|reason| format!("{:?}: {reason}", self.text))
    }
}

fn entry_of(text: &str) -> Option<&'static Entry> {
    find(text.split(':').next().unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_where_a_scheme_begins() {
        let text = "ppidm:groupnorm=local;offload=conv,norm,resident, \
                    resident:wire=halo=f16,attention=delta4;workers=2,local:steps=3;size=64x32";
        let specs = Spec::parse_list(text).unwrap();
        let texts: Vec<&str> = specs.iter().map(|spec| spec.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "ppidm:groupnorm=local;offload=conv,norm",
                "resident",
                "resident:wire=halo=f16,attention=delta4;workers=2",
                "local:steps=3;size=64x32",
            ]
        );
        assert_eq!(specs[2].others, [("workers".to_owned(), "2".to_owned())]);
        assert_eq!(specs[3].others.len(), 2);
        let labels: Vec<String> = specs
            .iter()
            .map(|spec| spec.scheme().unwrap().label())
            .collect();
        assert_eq!(
            labels,
            ["ppidm", "resident, f32", "resident, f16/delta4", "local"]
        );
    }

    #[test]
    fn what_is_off_is_named() {
        for (text, parts) in [
            ("residnt", ["residnt", "none of local"]),
            ("ppidm,residnt", ["residnt", "none of local"]),
            ("resident:wire=f17", ["resident:wire=f17", "f17"]),
            ("resident:lanes", ["resident:lanes", "option=value"]),
            ("", ["\"\"", "none of local"]),
        ] {
            let read = Spec::parse_list(text);
            let read = read.and_then(|specs| {
                specs
                    .iter()
                    .map(Spec::scheme)
                    .collect::<Result<Vec<_>, _>>()
            });
            let error = read.unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
