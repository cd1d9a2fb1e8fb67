//! Text for people: escaped names, modes, sizes, tables.

use daxfs_protocol::Hex;

/// Bytes of a name as text that is safe on a terminal, with the escapes of `ls -b`, except that spaces stay.
///
/// Control characters, backslashes, bytes that are not UTF-8, and the invisible characters that change the
/// direction of text are escaped: as `\n` and its like, else byte by byte in octal.
pub fn escape(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\u{7}' => text.push_str("\\a"),
                '\u{8}' => text.push_str("\\b"),
                '\t' => text.push_str("\\t"),
                '\n' => text.push_str("\\n"),
                '\u{b}' => text.push_str("\\v"),
                '\u{c}' => text.push_str("\\f"),
                '\r' => text.push_str("\\r"),
                c if is_unsafe(c) => octal(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => text.push(c),
            }
        }
        octal(&mut text, chunk.invalid());
    }
    text
}

/// A message that may quote foreign text: only what could harm a terminal or break the line is escaped.
pub fn escape_message(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for c in message.chars() {
        if is_unsafe(c) { text.extend(c.escape_default()) } else { text.push(c) }
    }
    text
}

/// Control characters, and the format characters that reorder or hide text.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn octal(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let digits = [byte >> 6, (byte >> 3) & 7, byte & 7].map(|digit| char::from(b'0' | digit));
        text.push('\\');
        text.extend(digits);
    }
}

/// The mode as `ls -l` shows it.
pub fn mode_string(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o100_000 => '-',
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o010_000 => 'p',
        0o140_000 => 's',
        0o020_000 => 'c',
        0o060_000 => 'b',
        _ => '?',
    };
    let mut text = String::from(kind);
    for (shift, special, set, clear) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => set,
            (false, true) => clear,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// What kind of entry a mode stands for, in words.
pub fn kind_name(mode: u32) -> &'static str {
    match mode & 0o170_000 {
        0o100_000 => "file",
        0o040_000 => "directory",
        0o120_000 => "symlink",
        0o010_000 => "fifo",
        0o140_000 => "socket",
        0o020_000 => "character device",
        0o060_000 => "block device",
        _ => "unknown",
    }
}

/// A size with a 1024-based unit: `612 B`, `4.0 KiB`, `86.7 MiB`. Rounded to nearest.
pub fn human(bytes: u64) -> String {
    human_wide(bytes.into())
}

/// The same of a sum that may exceed 64 bits.
pub fn human_wide(bytes: u128) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes.saturating_mul(10);
    let mut unit = "B";
    for name in UNITS {
        // 1023.95 and more of a unit would print as 1024.0.
        if unit != "B" && tenths < 10_240 {
            break;
        }
        tenths = tenths.saturating_add(512) / 1024;
        unit = name;
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A power of two the short way: `256`, `4K`, `2M`.
pub fn alignment(align: u64) -> String {
    match align {
        a if a >= 1 << 30 && a % (1 << 30) == 0 => format!("{}G", a >> 30),
        a if a >= 1 << 20 && a % (1 << 20) == 0 => format!("{}M", a >> 20),
        a if a >= 1 << 10 && a % (1 << 10) == 0 => format!("{}K", a >> 10),
        a => a.to_string(),
    }
}

/// `part` of `whole` in percent with two digits; `-` when there is no whole.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let hundredths = {
        let (part, whole) = (u128::from(part), u128::from(whole));
        part.saturating_mul(10_000).saturating_add(whole / 2).checked_div(whole).unwrap_or(0)
    };
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

/// `1 file`, `2 files`.
pub fn count(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    Hex(bytes).to_string()
}

/// How a column of a [`Table`] is padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// To the right: text.
    Left,
    /// To the left: numbers.
    Right,
}

/// Rows of text in columns as wide as their widest cell.
#[derive(Debug)]
pub struct Table<const N: usize> {
    sides: [Side; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table whose columns are padded as `sides` says.
    pub fn new(sides: [Side; N]) -> Self {
        Self { sides, rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// Writes all rows, `indent` spaces before each and two spaces between columns.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn write(&self, out: &mut impl std::io::Write, indent: usize) -> std::io::Result<()> {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for ((cell, width), side) in row.iter().zip(widths).zip(self.sides) {
                let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
                match side {
                    Side::Left => line.extend([cell, padding.as_str(), "  "]),
                    Side::Right => line.extend([padding.as_str(), cell, "  "]),
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_like_ls_b() {
        assert_eq!(escape(b"plain name.txt"), "plain name.txt");
        assert_eq!(escape("caf\u{e9} \u{1f980}".as_bytes()), "caf\u{e9} \u{1f980}");
        assert_eq!(escape(b"a\tb\nc\\d\x1b[31m"), "a\\tb\\nc\\\\d\\033[31m");
        assert_eq!(escape(b"x\xff\xc3"), "x\\377\\303");
        assert_eq!(escape("\u{9b}\u{202e}".as_bytes()), "\\302\\233\\342\\200\\256");
    }

    #[test]
    fn messages_stay_on_one_line() {
        assert_eq!(escape_message("C:\\x\n\u{1b}"), "C:\\x\\n\\u{1b}");
    }

    #[test]
    fn modes() {
        assert_eq!(mode_string(0o100_644), "-rw-r--r--");
        assert_eq!(mode_string(0o104_755), "-rwsr-xr-x");
        assert_eq!(mode_string(0o102_644), "-rw-r-Sr--");
        assert_eq!(mode_string(0o041_777), "drwxrwxrwt");
        assert_eq!(mode_string(0o120_777), "lrwxrwxrwx");
        assert_eq!(mode_string(0o010_600), "prw-------");
    }

    #[test]
    fn sizes() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(1024), "1.0 KiB");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human((1 << 20) - 1), "1.0 MiB");
        assert_eq!(human(90_868_376), "86.7 MiB");
        assert_eq!(human(u64::MAX), "16.0 EiB");
        assert_eq!(human_wide(3 << 64), "48.0 EiB");
        assert_eq!(percent(1, 3), "33.33%");
        assert_eq!(percent(3, 3), "100.00%");
        assert_eq!(percent(0, 0), "-");
        assert_eq!(alignment(2 << 20), "2M");
        assert_eq!(alignment(256), "256");
        assert_eq!(hex(&[0, 0xab]), "00ab");
    }

    #[test]
    fn tables_line_up() {
        let mut table = Table::new([Side::Left, Side::Right, Side::Left]);
        table.row(["a".into(), "1".into(), String::new()]);
        table.row(["long".into(), "200".into(), "x".into()]);
        let mut out = Vec::new();
        table.write(&mut out, 1).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), " a       1\n long  200  x\n");
    }
}
