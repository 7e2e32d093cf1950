//! Numbers and fields out of bytes. Nothing here allocates but the unescaping, and nothing panics.

/// Unsigned number in `RADIX`; digits only, no sign, no overflow. A constant radix makes the
/// multiplication cheap: maps of 4,000 lines hold 24,000 numbers.
fn number<const RADIX: u64>(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut value = 0u64;
    for &byte in text {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return None,
        };
        if u64::from(digit) >= RADIX {
            return None;
        }
        value = value.checked_mul(RADIX)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// Decimal.
pub(crate) fn dec(text: &[u8]) -> Option<u64> {
    number::<10>(text)
}

/// Hexadecimal, with or without `0x`.
pub(crate) fn hex(text: &[u8]) -> Option<u64> {
    number::<16>(text.strip_prefix(b"0x").unwrap_or(text))
}

/// Octal.
pub(crate) fn oct(text: &[u8]) -> Option<u64> {
    number::<8>(text)
}

/// Signed decimal.
pub(crate) fn int(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => 0i64.checked_sub_unsigned(dec(digits)?),
        None => i64::try_from(dec(text)?).ok(),
    }
}

/// Decimal that fits 32 bits.
pub(crate) fn dec32(text: &[u8]) -> Option<u32> {
    u32::try_from(dec(text)?).ok()
}

/// Hexadecimal that fits 32 bits.
pub(crate) fn hex32(text: &[u8]) -> Option<u32> {
    u32::try_from(hex(text)?).ok()
}

/// Signed decimal that fits 32 bits.
pub(crate) fn int32(text: &[u8]) -> Option<i32> {
    i32::try_from(int(text)?).ok()
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Without blanks at either end.
pub(crate) fn trim(mut text: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = text {
        if !is_blank(*first) {
            break;
        }
        text = rest;
    }
    while let [rest @ .., last] = text {
        if !is_blank(*last) {
            break;
        }
        text = rest;
    }
    text
}

/// Words separated by blanks.
#[derive(Clone)]
pub(crate) struct Words<'a> {
    rest: &'a [u8],
}

impl<'a> Words<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Words { rest: text }
    }

    /// What follows the words taken so far, without its leading blanks. Trailing ones stay.
    pub(crate) fn rest(&self) -> &'a [u8] {
        let start = self.rest.iter().position(|b| !is_blank(*b)).unwrap_or(self.rest.len());
        &self.rest[start..]
    }

    /// What follows the words taken so far, every byte of it.
    pub(crate) fn raw_rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let text = self.rest();
        if text.is_empty() {
            return None;
        }
        let end = text.iter().position(|b| is_blank(*b)).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.rest = rest;
        Some(word)
    }
}

/// Lines with their number from 1; a final newline makes no extra line.
pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let count = if text.is_empty() { 0 } else { usize::MAX };
    text.split(|b| *b == b'\n').take(count).enumerate().map(|(i, line)| (i + 1, line))
}

/// Splits at the first occurrence of `byte`, which belongs to neither part.
pub(crate) fn split_at_byte(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|b| *b == byte)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Undoes the octal escapes (`\012`) of `mangle_path` (fs/seq_file.c). `which` names the bytes that
/// the file escapes: with `\n` alone, as in maps, the text `\040` is a name and stays.
pub(crate) fn unescape_octal(text: &[u8], which: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        if *first == b'\\' {
            let code = tail.get(..3).and_then(oct).and_then(|v| u8::try_from(v).ok());
            if let Some(byte) = code.filter(|b| which.contains(b)) {
                out.push(byte);
                rest = &tail[3..];
                continue;
            }
        }
        out.push(*first);
        rest = tail;
    }
    out
}

/// Position of `needle`.
pub(crate) fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len()).position(|window| window == needle)
}
