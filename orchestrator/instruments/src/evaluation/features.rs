//! What FID and KID need of a set of pictures, in files that merge: shards give what one run gives.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::metrics::frechet::FeatureStatistics;
use crate::metrics::sets::SetFeatures;
use lacuna_orchestrator::output::write_whole;

/// Writes `set` as the tensors `mean` `[D]` and `m2` `[D, D]` in f64 and `kept` `[N, D]` in f32, with the
/// number of pictures as the metadata's `count`.
///
/// # Errors
/// [`lacuna_orchestrator::Error::Output`].
pub fn save(path: &Path, set: &SetFeatures) -> Result<()> {
    let statistics = &set.statistics;
    let dim = statistics.mean().len();
    let f64_bytes =
        |values: &[f64]| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let (mean, m2) = (f64_bytes(statistics.mean()), f64_bytes(&statistics.m2()));
    let kept: Vec<u8> = set.kept.iter().flat_map(|x| x.to_le_bytes()).collect();
    let rows = set.kept.len() / dim.max(1);
    let views = [
        ("mean", Dtype::F64, vec![dim], &mean),
        ("m2", Dtype::F64, vec![dim, dim], &m2),
        ("kept", Dtype::F32, vec![rows, dim], &kept),
    ];
    let count = HashMap::from([("count".to_owned(), statistics.count().to_string())]);
    let bytes = views
        .into_iter()
        .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(dtype, shape, bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .and_then(|views| safetensors::serialize(views, Some(count)));
    let bytes = bytes.map_err(|e| Error::output(path, e))?;
    Ok(write_whole(path, &bytes)?)
}

/// Reads what [`save`] wrote.
///
/// # Errors
/// [`Error::Input`] for any other file.
pub fn load(path: &Path) -> Result<SetFeatures> {
    let read = std::fs::read(path).map_err(|e| e.to_string());
    let set = read.and_then(|bytes| parse(&bytes));
    set.map_err(|reason| Error::Input {
        path: path.to_owned(),
        reason,
    })
}

fn parse(bytes: &[u8]) -> Result<SetFeatures, String> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let count = header.metadata().as_ref().and_then(|m| m.get("count"));
    let count = count.and_then(|count| count.parse().ok());
    let count = count.ok_or("it does not say of how many pictures it is")?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let tensor = |name: &str, dtype: Dtype| {
        let view = file.tensor(name).map_err(|e| e.to_string())?;
        if view.dtype() != dtype {
            return Err(format!("{name} is {:?}, not {dtype:?}", view.dtype()));
        }
        Ok(view)
    };
    let doubles = |name: &str| {
        let view = tensor(name, Dtype::F64)?;
        let (words, _) = view.data().as_chunks::<8>();
        Ok::<_, String>(words.iter().map(|w| f64::from_le_bytes(*w)).collect())
    };
    let (mean, m2): (Vec<f64>, Vec<f64>) = (doubles("mean")?, doubles("m2")?);
    let dim = mean.len();
    let view = tensor("kept", Dtype::F32)?;
    let (words, _) = view.data().as_chunks::<4>();
    let kept: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
    if !kept.is_empty() && kept.len() != count * dim {
        return Err(format!(
            "it keeps {} values of {count} pictures",
            kept.len()
        ));
    }
    let statistics = FeatureStatistics::from_parts(count, mean, &m2);
    Ok(SetFeatures {
        statistics: statistics.map_err(|e| e.to_string())?,
        kept,
    })
}

/// The union of sets; none of no set.
///
/// # Errors
/// [`Error::Features`] when their vectors differ in length.
pub fn merge(sets: impl IntoIterator<Item = SetFeatures>) -> Result<Option<SetFeatures>> {
    let mut all: Option<SetFeatures> = None;
    for set in sets {
        match &mut all {
            None => all = Some(set),
            Some(all) => {
                all.statistics.merge(&set.statistics)?;
                all.kept.extend(set.kept);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::frechet::frechet_distance;

    fn set(range: std::ops::Range<usize>) -> SetFeatures {
        let value = |i: usize| ((i * i) as f32 * 0.37).sin() * (1 + i % 4) as f32;
        let kept: Vec<f32> = (range.start * 4..range.end * 4).map(value).collect();
        let mut statistics = FeatureStatistics::new(4);
        statistics.add(&kept).unwrap();
        SetFeatures { statistics, kept }
    }

    #[test]
    fn sets_that_went_through_files_merge_to_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let parts = [0..7, 7..9, 9..30].map(|range| {
            let path = dir.path().join(format!("{}.safetensors", range.start));
            save(&path, &set(range)).unwrap();
            load(&path).unwrap()
        });
        let merged = merge(parts).unwrap().unwrap();
        let whole = set(0..30);
        assert_eq!(merged.kept, whole.kept);
        let other = set(100..140).statistics;
        let want = frechet_distance(&whole.statistics, &other).unwrap();
        let got = frechet_distance(&merged.statistics, &other).unwrap();
        assert!((got / want - 1.0).abs() < 1e-12, "{got} for {want}");
        assert!(merge([]).unwrap().is_none());
    }

    #[test]
    fn another_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        save(&path, &set(0..5)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for bytes in [&b"no"[..], &whole[..whole.len() - 4]] {
            std::fs::write(&path, bytes).unwrap();
            let error = load(&path).err().unwrap().to_string();
            assert!(error.contains("a.safetensors"), "{error}");
        }
    }
}
