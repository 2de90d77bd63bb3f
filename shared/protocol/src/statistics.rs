//! Group statistics in messages: mean and M2 of each, `[n, 2]`. In f64, for f32 would cost the last bits of a
//! merged variance. The count follows from the shape, so it is not sent.

use lacuna_kernels::stats::Moments;
use lacuna_wire::{Error, Payload, Result};

/// `moments` for a message.
pub fn to_payload(moments: &[Moments]) -> Payload {
    Payload::F64 {
        shape: vec![moments.len(), 2],
        data: moments.iter().flat_map(|m| [m.mean, m.m2]).collect(),
    }
}

/// The moments of groups of `count` values each.
///
/// # Errors
/// [`Error::WrongDtype`] when it does not hold statistics, [`Error::Message`] when a sum of squares is below zero.
pub fn from_payload(payload: &Payload, count: usize) -> Result<Vec<Moments>> {
    let Payload::F64 { data, .. } = payload else {
        return Err(Error::WrongDtype {
            name: "statistics".into(),
            dtype: format!("{:?}", payload.dtype()),
        });
    };
    let (pairs, _) = data.as_chunks::<2>();
    if pairs.iter().any(|[_, m2]| *m2 < 0.0) {
        return Err(Error::Message("a sum of squares below zero".into()));
    }
    let moments = pairs.iter().map(|&[mean, m2]| Moments {
        count: count as f64,
        mean,
        m2,
    });
    Ok(moments.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_wire::HostTensor;

    #[test]
    fn statistics_keep_every_bit_and_nothing_else_is_statistics() {
        let moments = vec![Moments {
            count: 12.0,
            mean: 1.0 / 3.0,
            m2: 1e-300,
        }];
        assert_eq!(from_payload(&to_payload(&moments), 12).unwrap(), moments);
        let features = HostTensor::zeros([1, 2]).into();
        assert!(matches!(
            from_payload(&features, 1),
            Err(Error::WrongDtype { .. })
        ));
        let negative = Moments {
            m2: -1e-9,
            ..moments[0]
        };
        let error = from_payload(&to_payload(&[negative]), 12).unwrap_err();
        assert!(error.to_string().contains("below zero"), "{error}");
    }
}
