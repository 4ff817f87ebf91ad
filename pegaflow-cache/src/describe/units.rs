// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Byte sizes as people write them: `2GiB`, `512MiB`, `1.5TiB`, `500MB`, `4096`.
//!
//! Invariant: `parse_bytes(&format_bytes(n)) == Ok(n)` for every `n`.

/// Suffixes and their factors. The binary ones come first: [`format_bytes`] writes only those.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads a number of bytes: a whole number, or a number with one of the units `B`, `KiB`..`TiB`
/// (powers of 1024), `KB`..`TB` (powers of 1000). Case does not matter; a space may stand between.
///
/// # Errors
/// A sentence for the user that says what is wrong and what to write instead.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_');
    let (number, unit) = text.split_at(split.unwrap_or(text.len()));
    let unit = unit.trim();
    let factor = match UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
    {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => 1,
        None => return Err(bad_unit(text, number, unit)),
    };
    scale(&number.replace('_', ""), factor).ok_or_else(|| {
        format!("`{text}` is not a size; write a whole number of bytes or for example `2GiB`")
    })
}

fn bad_unit(text: &str, number: &str, unit: &str) -> String {
    let letter = unit.to_ascii_uppercase();
    match letter.as_str() {
        "K" | "M" | "G" | "T" if !number.is_empty() => format!(
            "`{text}` is ambiguous; write `{number}{letter}iB` (powers of 1024) or `{number}{letter}B` (powers of 1000)"
        ),
        _ if number.is_empty() => {
            format!("`{text}` is not a size; write a whole number of bytes or for example `2GiB`")
        }
        _ => {
            format!("`{unit}` is no unit of size; use one of B, KiB, MiB, GiB, TiB, KB, MB, GB, TB")
        }
    }
}

/// `number * factor` where `number` may have a fraction, if the product is a whole `u64`.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 12 || whole.is_empty() {
        return None;
    }
    let tens = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let product = digits.checked_mul(u128::from(factor))?;
    product
        .is_multiple_of(tens)
        .then_some(product / tens)
        .and_then(|bytes| u64::try_from(bytes).ok())
}

/// Writes a number of bytes in the largest binary unit that divides it: `2GiB`, `1536MiB`, `4097`.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    for (name, factor) in &UNITS[..4] {
        if bytes > 0 && bytes.is_multiple_of(*factor) {
            return format!("{}{name}", bytes / factor);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("2GiB", 2 << 30),
            ("2 gib", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("500MB", 500_000_000),
            ("1_000KB", 1_000_000),
            ("7B", 7),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_bad_size_says_what_to_write() {
        for (text, part) in [
            ("2G", "`2GiB` (powers of 1024) or `2GB`"),
            ("2m", "`2MiB`"),
            ("5GiBs", "`GiBs` is no unit of size"),
            ("", "not a size"),
            ("GiB", "not a size"),
            ("-1GiB", "not a size"),
            ("1.0000000001B", "not a size"),
            ("99999999999TiB", "not a size"),
            ("1.2.3MiB", "not a size"),
        ] {
            let message = parse_bytes(text).expect_err(text);
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_reads_back(bytes: u64, shift in 0u32..41) {
            let bytes = (bytes >> shift) << shift;
            proptest::prop_assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,20}") {
            let _ = parse_bytes(&text);
        }
    }
}
