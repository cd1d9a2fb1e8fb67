use ::safetensors::SafeTensors;
use proptest::prelude::*;

use super::*;

/// A header and the data length that makes it whole.
fn parse(json: &str, data: u64) -> Result<Header, TensorError> {
    parse_header(json.as_bytes(), LENGTH_SIZE + json.len() as u64 + data)
}

fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

#[test]
fn tensors_are_sorted_and_their_offsets_are_those_of_the_file() {
    let json = format!(
        "{{{},{},\"__metadata__\":{{\"format\":\"pt\"}}}}   ",
        entry("b", "BF16", "[2,2]", 0, 8),
        entry("a", "F32", "[]", 8, 12)
    );
    let header = parse(&json, 12).unwrap();
    let start = 8 + json.len() as u64;
    assert_eq!(header.data_start(), start);
    let all: Vec<_> = header.all().iter().map(|info| (info.name.as_str(), info.offset, info.size)).collect();
    assert_eq!(all, [("a", start + 8, 4), ("b", start, 8)]);
    assert_eq!(header.get("b").unwrap().shape, [2, 2]);
    assert_eq!(header.metadata().unwrap()["format"], "pt");
}

#[test]
fn fillers_are_kept_and_hidden() {
    let json = format!(
        "{{{},{},{},{}}}",
        entry("__daxfs_pad_0", "U8", "[3]", 1, 4),
        entry("__daxfs_pad_1", "U8", "[0]", 4, 4),
        entry("a", "U8", "[1]", 0, 1),
        entry("Z", "U8", "[1]", 4, 5)
    );
    let header = parse(&json, 5).unwrap();
    assert_eq!((header.len(), header.all().len()), (2, 4));
    let names: Vec<_> = header.visible().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["Z", "a"]);
    let nth: Vec<_> = (0..3).map(|at| header.nth(at).map(|info| info.name.as_str())).collect();
    assert_eq!(nth, [Some("Z"), Some("a"), None]);
    assert!(header.get("__daxfs_pad_0").is_none());
    assert!(header.nth(usize::MAX).is_none());
}

#[test]
fn zero_size_tensors_and_no_tensors() {
    let json = format!("{{{},{}}}", entry("a", "F32", "[0,4]", 0, 0), entry("b", "F4", "[2]", 0, 1));
    assert_eq!(parse(&json, 1).unwrap().get("a").unwrap().size, 0);
    assert!(parse("{}", 0).unwrap().is_empty());
    assert!(parse(r#"{"__metadata__":null}"#, 0).unwrap().metadata().is_none());
}

#[test]
fn duplicate_keys_are_refused_everywhere() {
    let tensor = entry("a", "U8", "[1]", 0, 1);
    let key = |json: &str| match parse(json, 1) {
        Err(TensorError::DuplicateKey { what, key }) => (what, key),
        other => panic!("{other:?}"),
    };
    assert_eq!(key(&format!("{{{tensor},{tensor}}}")), (HEADER, "a".into()));
    // The same key, spelled differently.
    let escaped = entry("\\u0061", "U8", "[1]", 0, 1);
    assert_eq!(key(&format!("{{{tensor},{escaped}}}")), (HEADER, "a".into()));
    let metadata = r#""__metadata__":{}"#;
    assert_eq!(key(&format!("{{{metadata},{metadata}}}")), (HEADER, METADATA_KEY.into()));
    assert_eq!(key(r#"{"__metadata__":{"x":"1","x":"2"}}"#), (METADATA_KEY, "x".into()));
    // The crate takes the last one.
    let mut file = whole(format!("{{{tensor},{tensor}}}").as_bytes());
    file.push(0);
    assert!(SafeTensors::read_metadata(&file).is_ok());
}

#[test]
fn errors_name_the_tensor_what_it_has_and_what_it_needs() {
    let message = |json: String, data| parse(&json, data).unwrap_err().to_string();
    assert_eq!(
        message(format!("{{{}}}", entry("a", "F32", "[2]", 0, 9)), 9),
        "tensor \"a\": 9 bytes of data, but F32[2] takes 8"
    );
    assert_eq!(
        message(format!("{{{},{}}}", entry("a", "U8", "[2]", 0, 2), entry("b", "U8", "[1]", 3, 4)), 4),
        "tensor \"b\": data 0x3..0x4 must begin at 0x2 and not end before it begins; gaps and overlaps are not \
         allowed"
    );
    assert_eq!(
        message(format!("{{{}}}", entry("a", "F4", "[3]", 0, 1)), 1),
        "tensor \"a\": F4[3] does not end on a byte boundary"
    );
    assert_eq!(
        message(format!("{{{}}}", entry("a", "F64", "[4294967296,4294967296]", 0, 1)), 1),
        "tensor \"a\": F64[4294967296, 4294967296] has more than 2^64 bits"
    );
    let json = format!("{{{}}}", entry("a", "U8", "[1]", 0, 1));
    let end = 8 + json.len() + 1;
    assert_eq!(
        message(json, 3),
        format!(
            "tensor data ends at {end:#x}, the file at {:#x}; is the file cut off, or was something added?",
            end + 2
        )
    );
    let unknown = message(format!("{{{}}}", entry("a", "F128", "[1]", 0, 16)), 16);
    assert!(unknown.starts_with("safetensors header: \"a\": unknown variant `F128`"), "{unknown}");
    assert!(matches!(parse_header(b"{\xff}", 11), Err(TensorError::NotText { valid: 1, .. })));
}

#[test]
fn lengths_are_checked_before_anything_is_copied() {
    assert_eq!(header_length(2u64.to_le_bytes(), 10).unwrap(), 2);
    let error = header_length(3u64.to_le_bytes(), 10).unwrap_err();
    assert!(matches!(error, TensorError::HeaderOutsideFile { end: 11, file_len: 10 }));
    let error = header_length((MAX_HEADER + 1).to_le_bytes(), u64::MAX).unwrap_err();
    assert!(matches!(error, TensorError::HeaderTooLong { bound: MAX_HEADER, .. }));
    assert!(header_length(u64::MAX.to_le_bytes(), u64::MAX).is_err());
}

#[test]
fn a_large_header_is_parsed_whole() {
    let count = 20_000u64;
    let entries: Vec<_> = (0..count)
        .map(|at| {
            entry(
                &format!("layers.{}.experts.{}.weight", at / 128, at % 128),
                "BF16",
                "[16]",
                at * 32,
                at * 32 + 32,
            )
        })
        .collect();
    let header = parse(&format!("{{{}}}", entries.join(",")), count * 32).unwrap();
    assert_eq!(header.len(), 20_000);
    for at in [0, 127, 128, 19_999] {
        let name = format!("layers.{}.experts.{}.weight", at / 128, at % 128);
        assert_eq!(header.get(&name).unwrap().offset, header.data_start() + at * 32);
    }
}

/// Forms that serde lets pass or refuses in its own ways; the crate decides.
#[test]
fn unusual_json_is_judged_as_the_crate_judges_it() {
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let more =
        |value: &str| format!(r#"{{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":{value}}}}}"#);
    let dtype = |value: &str| format!(r#"{{"a":{{"dtype":{value},"shape":[1],"data_offsets":[0,1]}}}}"#);
    let cases = [
        (more("1"), true),
        (more("\"\\ud800\""), false),
        (more("1e999"), false),
        (more(&deep(100)), true),
        (more(&deep(130)), false),
        (more("{\"x\":1,\"x\":2}"), true),
        (dtype("{\"U8\":null}"), true),
        (dtype("{\"U8\":{}}"), false),
        (dtype("{\"U8\":1}"), false),
        (r#"{"a":["U8",[1],[0,1]]}"#.into(), true),
        (r#"{"a":["U8",[1],[0,1],0]}"#.into(), false),
        (r#"{"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}"#.into(), false),
        (format!("\n\t{}\n\r ", dtype("\"U8\"")), true),
        (format!("{}x", dtype("\"U8\"")), false),
        (format!("\u{feff}{}", dtype("\"U8\"")), false),
    ];
    for (json, accepted) in cases {
        agree(&json, 1).unwrap();
        assert_eq!(parse(&json, 1).is_ok(), accepted, "{json}");
    }
}

fn whole(json: &[u8]) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json);
    file
}

/// Both parsers on one file; they must agree unless keys are duplicate.
fn agree(json: &str, data: usize) -> Result<(), TestCaseError> {
    let mut file = whole(json.as_bytes());
    file.resize(file.len() + data, 0);
    let ours = parse_header(json.as_bytes(), file.len() as u64);
    match (SafeTensors::read_metadata(&file), ours) {
        (Ok((length, theirs)), Ok(ours)) => {
            prop_assert_eq!(ours.data_start(), 8 + length as u64);
            prop_assert_eq!(ours.all().len(), theirs.tensors().len());
            for info in ours.all() {
                let their = theirs.info(&info.name).expect("the same names");
                let begin = their.data_offsets.0 as u64 + ours.data_start();
                prop_assert_eq!(info.offset, begin);
                prop_assert_eq!(info.size, (their.data_offsets.1 - their.data_offsets.0) as u64);
                prop_assert_eq!(::safetensors::Dtype::try_from(info.dtype).ok(), Some(their.dtype));
                prop_assert_eq!(&info.shape, &their.shape.iter().map(|&dim| dim as u64).collect::<Vec<_>>());
            }
            let texts = |(key, text): (String, String)| (key, Value::Text(text));
            let theirs = theirs.metadata().clone().map(|pairs| pairs.into_iter().map(texts).collect());
            prop_assert_eq!(ours.metadata().cloned(), theirs);
        }
        (Err(_), Err(_)) | (Ok(_), Err(TensorError::DuplicateKey { .. })) => {}
        (theirs, ours) => prop_assert!(false, "{}\ntheirs {:?}\nours {:?}", json, theirs, ours),
    }
    Ok(())
}

/// Values that are odd in one way or another, in place of what belongs there.
fn odd_value() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "null",
        "{}",
        "[]",
        "1",
        "-1",
        "1.0",
        "1e999",
        "18446744073709551616",
        "\"\\ud800\"",
        "\"F32\"",
        "{\"F32\":null}",
        "{\"F32\":{}}",
        "[\"F32\",[1],[0,4]]",
        "[\"F32\",[1],[0,4],5]",
        "[0,4]",
        "[0]",
        "[0,4,8]",
        "[0,-0]",
        "true",
        "{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"more\":[{\"deep\":1e5}]}",
        "{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
        "{\"dtype\":\"U8\",\"shape\":[0]}",
        "{\"a\":1}",
        "{\"a\":null}",
        "{\"a\":\"b\",\"c\":\"d\"}",
        "[[[[[[[[1]]]]]]]]",
        "\"\\u0000\"",
        "tru",
        "\"",
    ])
    .prop_map(str::to_owned)
}

fn tensor_value() -> impl Strategy<Value = String> {
    let dtype = prop_oneof![
        20 => prop::sample::select(Dtype::ALL.to_vec()).prop_map(|dtype| format!("\"{dtype}\"")),
        1 => odd_value(),
    ];
    let shape = prop_oneof![20 => prop::collection::vec(0u64..4, 0..4).prop_map(|dims| format!("{dims:?}")), 1 => odd_value()];
    let offsets =
        prop_oneof![20 => (0u64..9, 0u64..9).prop_map(|(a, b)| format!("[{a},{b}]")), 1 => odd_value()];
    let more = prop_oneof![8 => Just(String::new()), 1 => odd_value().prop_map(|value| format!(",\"more\":{value}"))];
    (dtype, shape, offsets, more).prop_map(|(dtype, shape, offsets, more)| {
        format!("{{\"dtype\":{dtype},\"shape\":{shape},\"data_offsets\":{offsets}{more}}}")
    })
}

/// Tensors that follow each other properly, with names from a small set so that some are equal.
fn sound_tensors() -> impl Strategy<Value = Vec<(String, String, u64)>> {
    let one = ("[a-d]{1,2}", prop::sample::select(Dtype::ALL.to_vec()), prop::collection::vec(0u64..5, 0..3));
    prop::collection::vec(one, 0..5).prop_map(|tensors| {
        let mut end = 0;
        tensors
            .into_iter()
            .map(|(name, dtype, shape)| {
                let begin = end;
                end += dtype.size_of(&shape).unwrap_or(1);
                (
                    name,
                    format!(r#"{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#),
                    end,
                )
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn accepts_what_the_crate_accepts_of_sound_headers(
        tensors in sound_tensors(),
        order in any::<prop::sample::Index>(),
        metadata in prop::option::of(odd_value()),
        replaced in prop::option::weighted(0.2, (any::<prop::sample::Index>(), odd_value())),
        extra in prop::option::weighted(0.2, Just(1usize)),
        spaces in " {0,3}",
    ) {
        let data = tensors.last().map_or(0, |tensor| usize::try_from(tensor.2).unwrap());
        let mut members: Vec<_> = tensors.into_iter().map(|(name, value, _)| format!("\"{name}\":{value}")).collect();
        if let (Some((at, value)), false) = (replaced, members.is_empty()) {
            let at = at.index(members.len());
            members[at] = format!("\"x\":{value}");
        }
        members.extend(metadata.map(|value| format!("\"__metadata__\":{value}")));
        if !members.is_empty() {
            let middle = order.index(members.len());
            members.rotate_left(middle);
        }
        agree(&format!("{{{}}}{spaces}", members.join(",")), data + extra.unwrap_or(0))?;
    }

    #[test]
    fn agrees_with_the_crate_on_odd_headers(
        members in prop::collection::vec(("(a|b|__metadata__|__daxfs_pad_0)", prop_oneof![3 => tensor_value(), 1 => odd_value()]), 0..4),
        data in 0usize..9,
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let members: Vec<_> = members.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        let json = format!("{{{}}}", members.join(","));
        let end = cut.map_or(json.len(), |cut| cut.index(json.len()));
        agree(&json[..end], data)?;
    }

    #[test]
    fn any_bytes_are_an_error_or_a_header(json in prop::collection::vec(any::<u8>(), 0..64), len in any::<u64>()) {
        let _ = parse_header(&json, len);
    }
}
