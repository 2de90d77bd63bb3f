//! Capital letters of 5 x 7 pixels, for the headings of a sheet.

/// Rows and columns of a glyph.
pub const GLYPH: [usize; 2] = [7, 5];

/// Letters, digits and signs; each row's five pixels are bits, the left one highest.
const GLYPHS: [(char, [u8; 7]); 43] = [
    ('A', [14, 17, 17, 31, 17, 17, 17]),
    ('B', [30, 17, 17, 30, 17, 17, 30]),
    ('C', [14, 17, 16, 16, 16, 17, 14]),
    ('D', [30, 17, 17, 17, 17, 17, 30]),
    ('E', [31, 16, 16, 30, 16, 16, 31]),
    ('F', [31, 16, 16, 30, 16, 16, 16]),
    ('G', [14, 17, 16, 23, 17, 17, 15]),
    ('H', [17, 17, 17, 31, 17, 17, 17]),
    ('I', [14, 4, 4, 4, 4, 4, 14]),
    ('J', [7, 2, 2, 2, 2, 18, 12]),
    ('K', [17, 18, 20, 24, 20, 18, 17]),
    ('L', [16, 16, 16, 16, 16, 16, 31]),
    ('M', [17, 27, 21, 21, 17, 17, 17]),
    ('N', [17, 25, 21, 19, 17, 17, 17]),
    ('O', [14, 17, 17, 17, 17, 17, 14]),
    ('P', [30, 17, 17, 30, 16, 16, 16]),
    ('Q', [14, 17, 17, 17, 21, 18, 13]),
    ('R', [30, 17, 17, 30, 20, 18, 17]),
    ('S', [15, 16, 16, 14, 1, 1, 30]),
    ('T', [31, 4, 4, 4, 4, 4, 4]),
    ('U', [17, 17, 17, 17, 17, 17, 14]),
    ('V', [17, 17, 17, 17, 17, 10, 4]),
    ('W', [17, 17, 17, 21, 21, 27, 17]),
    ('X', [17, 17, 10, 4, 10, 17, 17]),
    ('Y', [17, 17, 10, 4, 4, 4, 4]),
    ('Z', [31, 1, 2, 4, 8, 16, 31]),
    ('0', [14, 17, 19, 21, 25, 17, 14]),
    ('1', [4, 12, 4, 4, 4, 4, 14]),
    ('2', [14, 17, 1, 6, 8, 16, 31]),
    ('3', [30, 1, 1, 14, 1, 1, 30]),
    ('4', [2, 6, 10, 18, 31, 2, 2]),
    ('5', [31, 16, 30, 1, 1, 17, 14]),
    ('6', [14, 16, 16, 30, 17, 17, 14]),
    ('7', [31, 1, 2, 4, 8, 8, 8]),
    ('8', [14, 17, 17, 14, 17, 17, 14]),
    ('9', [14, 17, 17, 15, 1, 1, 14]),
    ('.', [0, 0, 0, 0, 0, 12, 12]),
    (',', [0, 0, 0, 0, 12, 4, 8]),
    (':', [0, 12, 12, 0, 12, 12, 0]),
    ('-', [0, 0, 0, 31, 0, 0, 0]),
    ('=', [0, 0, 31, 0, 31, 0, 0]),
    ('%', [25, 26, 2, 4, 8, 11, 19]),
    ('?', [14, 17, 1, 2, 4, 0, 4]),
];

/// The pixels `[row, column]` that are set for `text`, written from the left in one line; what has no glyph is
/// blank.
pub fn pixels(text: &str) -> impl Iterator<Item = [usize; 2]> {
    let [rows, columns] = GLYPH;
    text.chars().enumerate().flat_map(move |(at, letter)| {
        let letter = letter.to_ascii_uppercase();
        let glyph = GLYPHS.iter().find(|(of, _)| *of == letter);
        let lines = glyph.map_or([0; 7], |(_, lines)| *lines);
        (0..rows * columns)
            .filter(move |i| lines[i / columns] >> (columns - 1 - i % columns) & 1 == 1)
            .map(move |i| [i / columns, at * (columns + 1) + i % columns])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_stand_side_by_side() {
        let set: Vec<[usize; 2]> = pixels("l 1").collect();
        assert_eq!(set.iter().filter(|[_, x]| *x == 0).count(), 7);
        assert!(set.iter().all(|[_, x]| !(5..12).contains(x)));
        assert!(set.contains(&[0, 14]));
    }
}
