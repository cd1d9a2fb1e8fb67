//! Tensors in a GPU's memory by name, with their types, shapes and addresses, and lent out.

use daxfs_device::placement::Plan;
use daxfs_device::{DeviceError, DeviceTensor, Error, ImageExt, UploadOptions};

use crate::support::{GPU, device, image, live, on_a_gpu, read};

/// A loan says what the tensor is; the deleter gives it back.
fn check_loan(tensor: &DeviceTensor) {
    let loan = tensor.export_dlpack(true, None).unwrap();
    // SAFETY: the loan is live until its deleter is called, below.
    let managed = unsafe { loan.as_ref() };
    assert_eq!(managed.dl_tensor.device, GPU);
    assert_eq!(
        managed.dl_tensor.data.addr() as u64 + managed.dl_tensor.byte_offset,
        tensor.address().unwrap()
    );
    assert_eq!(u64::try_from(managed.dl_tensor.ndim).unwrap(), tensor.shape().len() as u64);
    // SAFETY: the deleter of this loan, called once.
    unsafe { managed.deleter.unwrap()(loan.as_ptr()) };
}

#[test]
fn tensors_have_names_types_shapes_and_addresses() {
    on_a_gpu("tensors::tensors_have_names_types_shapes_and_addresses", || {
        let before = live();
        let image = image();
        let tensors = image.to(&device()).unwrap().tensors().unwrap();
        assert_eq!(tensors.names().unwrap(), ["b", "q", "w"]);
        assert_eq!(tensors.host().len(), 3);
        for host in image.tensors().unwrap().iter().map(Result::unwrap) {
            let tensor = tensors.get(host.name()).unwrap();
            assert_eq!(
                (tensor.name(), tensor.dtype(), tensor.shape()),
                (host.name(), host.dtype(), host.shape())
            );
            assert_eq!((tensor.elements(), tensor.nbytes()), (host.elements(), host.nbytes()));
            assert!(tensor.is_whole() && tensor.is_contiguous() && !tensor.is_writable());
            assert_eq!(read(tensor.place()), host.bytes().unwrap().to_vec());
            check_loan(&tensor);
        }
        let w = tensors.get("w").unwrap();
        assert_eq!(w.strides(), [4, 1]);
        let rows = w.slice(0, 2..5).unwrap();
        assert_eq!((rows.shape(), rows.nbytes(), rows.is_contiguous()), (&[3, 4][..], 48, true));
        assert_eq!(rows.address().unwrap(), w.address().unwrap() + 2 * 16);
        check_loan(&rows);
        let columns = w.slice(1, 1..3).unwrap();
        assert_eq!(
            (columns.shape(), columns.strides(), columns.nbytes()),
            (&[256, 2][..], &[4, 1][..], 2048)
        );
        assert!(!columns.is_contiguous() && !columns.is_whole());
        check_loan(&columns);
        assert!(matches!(tensors.get("absent").unwrap_err(), Error::Image(_)));
        assert!(w.slice(2, 0..1).is_err() && w.slice(0, 0..257).is_err());
        assert!(w.export_dlpack(false, None).is_err(), "the memory is read-only");
        // A tensor keeps the memory.
        let address = w.address();
        drop((tensors, rows, columns));
        assert_eq!(w.address(), address);
        drop((w, image));
        assert_eq!(live(), before);
    });
}

#[test]
fn a_rank_has_its_own_tensors() {
    on_a_gpu("tensors::a_rank_has_its_own_tensors", || {
        let image = image();
        let plan = r#"{"ranks": 2, "rules": [
            {"tensors": "w", "split": 1, "gather": true}, {"tensors": "b", "on": 1}]}"#;
        let placement = Plan::parse(plan).unwrap().place(&image, 0).unwrap();
        let tensors = placement.to(&device()).unwrap().tensors().unwrap();
        assert_eq!(tensors.names().unwrap(), ["q", "w"]);
        let w = tensors.get("w").unwrap();
        assert_eq!((w.shape(), w.strides(), w.is_whole()), (&[256, 2][..], &[2, 1][..], false));
        check_loan(&w);
        let error = tensors.get("b").unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::NotPlaced { .. })), "{error}");
    });
}

#[test]
fn a_writable_copy_is_lent_for_writing() {
    on_a_gpu("tensors::a_writable_copy_is_lent_for_writing", || {
        let copy = image().to_with(&device(), &UploadOptions::new().writable(true)).unwrap();
        let tensor = copy.tensors().unwrap().get("w").unwrap();
        assert!(tensor.is_writable());
        let loan = tensor.export_dlpack(false, Some(GPU)).unwrap();
        // SAFETY: the loan is live until its deleter is called, below.
        let deleter = unsafe { loan.as_ref() }.deleter.unwrap();
        // SAFETY: the deleter of this loan, called once.
        unsafe { deleter(loan.as_ptr()) };
    });
}
