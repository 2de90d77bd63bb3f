//! Carries of inputs that are enlarged before: every value twice both ways.

use lacuna_shares::split::Carries;

/// The carries of an input `[B, C, H, W]`, of so many batch entries, rows and columns, that is enlarged to `high` rows and
/// `wide` columns: four of each, as many as ever. Those beyond the last row or column are of nothing.
pub fn carries(few: &Carries, [_, rows, columns]: [usize; 3], [high, wide]: [usize; 2]) -> Carries {
    let mut all = Carries {
        at: Vec::with_capacity(4 * few.at.len()),
        times: Vec::with_capacity(4 * few.at.len()),
    };
    for (at, times) in few.at.iter().zip(&few.times) {
        let at = *at as usize;
        let (plane, row, column) = (at / (rows * columns), at / columns % rows, at % columns);
        for [down, across] in [[0, 0], [0, 1], [1, 0], [1, 1]] {
            let (row, column) = (2 * row + down, 2 * column + across);
            let within = row < high && column < wide;
            let to = (plane * high + row.min(high - 1)) * wide + column.min(wide - 1);
            all.at.push(to as u32);
            all.times.push(if within { *times } else { 0 });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 2x3 pixels, enlarged to 3x5: the last row and column have one copy.
    #[test]
    fn a_carry_is_enlarged_as_its_feature_is() {
        let few = Carries {
            at: vec![0, 5, 7],
            times: vec![1, 2, -3],
        };
        let all = carries(&few, [1, 2, 3], [3, 5]);
        let mut dense = vec![0; 30];
        for (at, times) in all.at.iter().zip(&all.times) {
            dense[*at as usize] += times;
        }
        let mut want = vec![0; 30];
        for at in [0, 1, 5, 6] {
            want[at] = 1;
        }
        want[14] = 2;
        for at in [17, 18, 22, 23] {
            want[at] = -3;
        }
        assert_eq!(dense, want);
    }
}
