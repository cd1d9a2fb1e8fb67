use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Counts how often it is dropped.
struct Owner(Arc<AtomicUsize>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn array(data: &[u8], shape: &[u64]) -> Array {
    Array {
        data: data.as_ptr().cast_mut().cast(),
        device: DLDevice::CPU,
        ndim: i32::try_from(shape.len()).unwrap(),
        dtype: DLDataType::of(Dtype::U8).unwrap(),
        shape: signed(shape).unwrap(),
        strides: signed(&strides(shape).unwrap()).unwrap(),
    }
}

/// What a consumer gets to see through the C pointer.
fn seen(tensor: &DLTensor) -> (*mut c_void, Vec<i64>, Vec<i64>) {
    let len = usize::try_from(tensor.ndim).unwrap();
    let read = |array: *mut i64| -> Vec<i64> {
        // SAFETY: `array` is the buffer of a vector of `ndim` values in the loan that `tensor` belongs to, which
        // lives; nobody writes to it.
        unsafe { std::slice::from_raw_parts(array, len) }.to_vec()
    };
    (tensor.data, read(tensor.shape), read(tensor.strides))
}

#[test]
fn the_owner_is_dropped_once_by_the_deleter_on_another_thread() {
    let drops = Arc::new(AtomicUsize::new(0));
    let bytes = [1u8; 24];
    let loan = lend_versioned(array(&bytes, &[2, 3, 4]), Box::new(Owner(Arc::clone(&drops))), FLAG_READ_ONLY);
    // SAFETY: the loan was just made and not deleted.
    let managed = unsafe { loan.as_ref() };
    assert_eq!(managed.version, DLPackVersion { major: 1, minor: 1 });
    assert_eq!(managed.flags, 1);
    let (data, shape, strides) = seen(&managed.dl_tensor);
    assert_eq!(data.cast_const().cast(), bytes.as_ptr());
    assert_eq!((shape, strides), (vec![2, 3, 4], vec![12, 4, 1]));
    assert_eq!(drops.load(Ordering::SeqCst), 0);

    let deleter = managed.deleter.unwrap();
    let address = loan.as_ptr().expose_provenance();
    std::thread::spawn(move || {
        let loan = std::ptr::with_exposed_provenance_mut(address);
        // SAFETY: this is the pointer that `lend` returned, deleted here for the first time.
        unsafe { deleter(loan) };
    })
    .join()
    .unwrap();
    assert_eq!(drops.load(Ordering::SeqCst), 1);
}

#[test]
fn the_legacy_form_is_deleted_too_and_null_is_ignored() {
    let drops = Arc::new(AtomicUsize::new(0));
    let loan = lend_legacy(array(&[0; 4], &[4]), Box::new(Owner(Arc::clone(&drops))));
    // SAFETY: the loan was just made and not deleted.
    let managed = unsafe { loan.as_ref() };
    assert_eq!(seen(&managed.dl_tensor).1, [4]);
    let deleter = managed.deleter.unwrap();
    // SAFETY: the deleter allows NULL.
    unsafe { deleter(std::ptr::null_mut()) };
    assert_eq!(drops.load(Ordering::SeqCst), 0);
    // SAFETY: this is the pointer that `lend` returned, deleted here for the first time.
    unsafe { deleter(loan.as_ptr()) };
    assert_eq!(drops.load(Ordering::SeqCst), 1);
}

#[test]
fn a_panicking_owner_does_not_unwind_into_the_consumer() {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("owner");
        }
    }
    let loan = lend_legacy(array(&[], &[0]), Box::new(Panics));
    // SAFETY: this is the pointer that `lend` returned, deleted here for the first time.
    unsafe { delete(loan.as_ptr()) };
}

#[test]
fn scalars_and_empty_arrays() {
    assert_eq!(strides(&[]).unwrap(), Vec::<u64>::new());
    assert_eq!(strides(&[3, 0, 2]).unwrap(), [2, 2, 1]);
    assert_eq!(strides(&[0, u64::MAX, 2]), None);
    assert_eq!(signed(&[1 << 63]), None);
    let drops = Arc::new(AtomicUsize::new(0));
    let loan = lend_versioned(array(&[7], &[]), Box::new(Owner(Arc::clone(&drops))), 0);
    // SAFETY: the loan was just made and not deleted.
    let managed = unsafe { loan.as_ref() };
    assert_eq!(managed.dl_tensor.ndim, 0);
    // SAFETY: this is the pointer that `lend` returned, deleted here for the first time.
    unsafe { delete(loan.as_ptr()) };
    assert_eq!(drops.load(Ordering::SeqCst), 1);
}

/// Codes of `dlpack.h` 1.1, by the names it gives them.
#[test]
fn data_types_are_those_of_the_header() {
    let of = |dtype| DLDataType::of(dtype).map(|t| (t.code, t.bits, t.lanes));
    assert_eq!(of(Dtype::I32), Some((0, 32, 1)), "kDLInt");
    assert_eq!(of(Dtype::U64), Some((1, 64, 1)), "kDLUInt");
    assert_eq!(of(Dtype::F16), Some((2, 16, 1)), "kDLFloat");
    assert_eq!(of(Dtype::BF16), Some((4, 16, 1)), "kDLBfloat");
    assert_eq!(of(Dtype::C64), Some((5, 64, 1)), "kDLComplex");
    assert_eq!(of(Dtype::BOOL), Some((6, 8, 1)), "kDLBool");
    assert_eq!(of(Dtype::F8_E4M3), Some((10, 8, 1)), "kDLFloat8_e4m3fn");
    assert_eq!(of(Dtype::F8_E4M3FNUZ), Some((11, 8, 1)), "kDLFloat8_e4m3fnuz");
    assert_eq!(of(Dtype::F8_E5M2), Some((12, 8, 1)), "kDLFloat8_e5m2");
    assert_eq!(of(Dtype::F8_E5M2FNUZ), Some((13, 8, 1)), "kDLFloat8_e5m2fnuz");
    assert_eq!(of(Dtype::F8_E8M0), Some((14, 8, 1)), "kDLFloat8_e8m0fnu");
    assert_eq!(of(Dtype::F4), Some((17, 4, 2)), "kDLFloat4_e2m1fn, in pairs");
    assert_eq!(of(Dtype::F6_E2M3), None);
    for dtype in Dtype::ALL {
        if let Some((_, bits, lanes)) = of(dtype) {
            let pair = if dtype == Dtype::F4 { 2 } else { 1 };
            assert_eq!(usize::from(bits) * usize::from(lanes), dtype.bits().unwrap() * pair, "{dtype}");
        }
    }
}

#[test]
fn pairs_halve_the_last_dimension() {
    assert_eq!(dimensions(&[3, 8], 2), Some(vec![3, 4]));
    assert_eq!(dimensions(&[2, 3], 2), None);
    assert_eq!(dimensions(&[], 2), None);
    assert_eq!(dimensions(&[0], 2), Some(vec![0]));
    assert_eq!(dimensions(&[2, 3], 1), Some(vec![2, 3]));
}

#[test]
fn only_host_devices_have_pointers_of_the_cpu() {
    assert!(DLDevice::CPU.is_host() && DLDevice::CUDA_HOST.is_host() && DLDevice::ROCM_HOST.is_host());
    assert!(!DLDevice { device_type: 2, device_id: 0 }.is_host());
    assert!(!DLDevice { device_type: 1, device_id: 1 }.is_host());
}

fn image_of(dtype: Dtype, shape: &[u64], bytes: &[u8]) -> crate::Tensor {
    let file = crate::tensor::test_image::safetensors(&[("w", dtype, shape, bytes)], "");
    let image = crate::tensor::test_image::TestImage::new().file("/w.safetensors", file).open();
    image.tensors().unwrap().get("w").unwrap()
}

#[test]
fn exported_tensors_point_into_the_image_and_keep_it() {
    let tensor = image_of(Dtype::BF16, &[2, 3], b"abcdefghijkl");
    let pointer = tensor.bytes().unwrap().as_ptr();
    let loan = export_versioned(&tensor, true, DLDevice::CUDA_HOST).unwrap();
    let legacy = export_legacy(&tensor).unwrap();
    drop(tensor);
    // SAFETY: the loan was just made and not deleted.
    let managed = unsafe { loan.as_ref() };
    assert_eq!((managed.flags, managed.dl_tensor.device), (FLAG_READ_ONLY, DLDevice::CUDA_HOST));
    assert_eq!(managed.dl_tensor.dtype, DLDataType { code: 4, bits: 16, lanes: 1 });
    let (data, shape, strides) = seen(&managed.dl_tensor);
    assert_eq!((data.cast_const().cast(), shape, strides), (pointer, vec![2, 3], vec![3, 1]));
    // SAFETY: the loan holds the image, whose bytes nobody writes, and the tensor has 12 of them at `data`.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast_const().cast::<u8>(), 12) };
    assert_eq!(bytes, b"abcdefghijkl");
    // SAFETY: this is the pointer that `export_versioned` returned, deleted here for the first time.
    unsafe { delete(loan.as_ptr()) };

    // SAFETY: the loan was just made and not deleted.
    let managed = unsafe { legacy.as_ref() };
    assert_eq!(managed.dl_tensor.device, DLDevice::CPU);
    assert_eq!(seen(&managed.dl_tensor).0.cast_const().cast(), pointer);
    // SAFETY: this is the pointer that `export_legacy` returned, deleted here for the first time.
    unsafe { delete(legacy.as_ptr()) };
}

#[test]
fn fp4_is_exported_in_pairs_and_empty_tensors_with_their_shape() {
    let loan = export_versioned(&image_of(Dtype::F4, &[2, 4], b"abcd"), true, DLDevice::CPU).unwrap();
    // SAFETY: the loan was just made and not deleted.
    let managed = unsafe { loan.as_ref() };
    assert_eq!(managed.dl_tensor.dtype, DLDataType { code: 17, bits: 4, lanes: 2 });
    assert_eq!(seen(&managed.dl_tensor).1, [2, 2]);
    assert_eq!(managed.flags & FLAG_SUBBYTE_PADDED, 0);
    // SAFETY: this is the pointer that `export_versioned` returned, deleted here for the first time.
    unsafe { delete(loan.as_ptr()) };

    let loan = export_legacy(&image_of(Dtype::F32, &[3, 0], b"")).unwrap();
    // SAFETY: the loan was just made and not deleted.
    let managed = unsafe { loan.as_ref() };
    assert_eq!(seen(&managed.dl_tensor).1, [3, 0]);
    // SAFETY: this is the pointer that `export_legacy` returned, deleted here for the first time.
    unsafe { delete(loan.as_ptr()) };
}

#[test]
fn what_cannot_be_exported_says_why() {
    let refused = |tensor: &crate::Tensor, read_only, device| {
        export_versioned(tensor, read_only, device).unwrap_err().to_string()
    };
    let text = refused(&image_of(Dtype::F6_E2M3, &[4], b"abc"), true, DLDevice::CPU);
    assert!(
        text.contains("F6_E2M3[4] cannot be exported as DLPack: no consumer takes 6-bit types"),
        "{text}"
    );
    let text = refused(&image_of(Dtype::F4, &[2, 3], b"abc"), true, DLDevice::CPU);
    assert!(text.contains("not a whole number of pairs"), "{text}");
    let tensor = image_of(Dtype::U8, &[1], b"a");
    let text = refused(&tensor, true, DLDevice { device_type: 2, device_id: 0 });
    assert!(text.contains("not that of the device asked for"), "{text}");
    let text = refused(&tensor, false, DLDevice::CPU);
    assert!(text.contains("its memory is mapped read-only"), "{text}");
    let text = refused(&image_of(Dtype::U8, &[0, 1 << 63], b""), true, DLDevice::CPU);
    assert!(text.contains("do not fit 63 bits"), "{text}");
}

#[test]
fn copies_are_aligned_writable_and_independent_of_the_image() {
    let bytes: Vec<u8> = (0..130).collect();
    let tensor = image_of(Dtype::U8, &[10, 13], &bytes);
    let loan = copy_versioned(&tensor).unwrap();
    let legacy = copy_legacy(&tensor).unwrap();
    // SAFETY: the loan was just made and not deleted.
    let managed = unsafe { loan.as_ref() };
    assert_eq!(managed.flags, FLAG_IS_COPIED);
    let (data, shape, _) = seen(&managed.dl_tensor);
    assert_eq!((data.addr() % COPY_ALIGNMENT, shape), (0, vec![10, 13]));
    // SAFETY: the loan owns 130 bytes at `data`, which nobody else has a reference to.
    let copy = unsafe { std::slice::from_raw_parts_mut(data.cast::<u8>(), 130) };
    assert_eq!(copy, bytes);
    copy.fill(0xff);
    assert_eq!(tensor.as_slice().unwrap(), bytes);
    // SAFETY: this is the pointer that `copy_versioned` returned, deleted here for the first time.
    unsafe { delete(loan.as_ptr()) };

    // SAFETY: the loan was just made and not deleted.
    let data = seen(&unsafe { legacy.as_ref() }.dl_tensor).0;
    // SAFETY: the loan owns 130 bytes at `data`, which nobody writes.
    assert_eq!(unsafe { std::slice::from_raw_parts(data.cast_const().cast::<u8>(), 130) }, bytes);
    // SAFETY: this is the pointer that `copy_legacy` returned, deleted here for the first time.
    unsafe { delete(legacy.as_ptr()) };
}
