"""Ops without arithmetic: views, queries, allocation, moves, random numbers, communication.

They count zero FLOPs; the bytes are what a move reads and writes, and zero for a view. Left out:
the random numbers' own arithmetic, and the additions of a collective reduction, which run on the
way. Where a trace does not tell how much moved (`index`: its indices are not recorded), the bytes
are those that it does tell.
"""

from collections.abc import Callable
from math import ceil, prod

from flopprof import dtypes
from flopprof.formulas import OpCall, Work, free_op
from flopprof.formulas.ops._elements import broadcast, elements, moved_bytes, number, ops, rows

# `arguments | names`: those read or written, one that is both twice.
_MOVES = """
    | view view_as _unsafe_view reshape reshape_as _reshape_alias t~ transpose~ permute
        numpy_T mT mH adjoint matrix_H swapaxes~ swapdims~ movedim moveaxis expand expand_as
        broadcast_to broadcast_tensors meshgrid slice select narrow split split_with_sizes chunk
        tensor_split unsafe_chunk unsafe_split unsafe_split_with_sizes hsplit vsplit dsplit unbind
        squeeze~ unsqueeze~ flatten unflatten ravel as_strided~ unfold diagonal linalg_diagonal
        detach~ alias lift lift_fresh positive resolve_conj resolve_neg conj _conj _neg_view real
        imag view_as_real view_as_complex atleast_1d atleast_2d atleast_3d _reshape_from_tensor
        values indices _values _indices crow_indices col_indices ccol_indices row_indices data
        _mkldnn_reshape _mkldnn_transpose~ _fw_primal _make_dual _unpack_dual int_repr
        _nested_view_from_buffer _nested_view_from_jagged _nested_get_values _nested_get_offsets
        _nested_get_lengths _nested_get_ragged_idx _nested_get_min_seqlen _nested_get_max_seqlen
        _nested_get_jagged_dummy _nested_tensor_size _nested_tensor_strides sparse_resize_
        _nested_tensor_storage_offsets _nested_compute_contiguous_strides_offsets
        _test_autograd_multiple_dispatch_view sparse_resize_and_clear_ slice_inverse
        unflatten_dense_tensors inductor::_reinterpret_tensor
    | empty empty_like empty_strided empty_permuted empty_quantized new_empty new_empty_strided
        _empty_affine_quantized _empty_per_channel_affine_quantized _efficientzerotensor resize_
        resize_as_ resize_as_sparse_ _resize_output_ set_ set_data requires_grad_ retain_grad
        from_file pin_memory _pin_memory is_pinned _lazy_clone inductor::_alloc_from_pool
        inductor::resize_storage_bytes_ sparse_coo_tensor _sparse_coo_tensor_unsafe
        _sparse_coo_tensor_with_dims _sparse_coo_tensor_with_dims_and_tensors sparse_csr_tensor
        sparse_compressed_tensor _sparse_compressed_tensor_unsafe _sparse_csr_tensor_unsafe
        sparse_csc_tensor sparse_bsr_tensor sparse_bsc_tensor _sparse_csc_tensor_unsafe
        _sparse_bsr_tensor_unsafe _sparse_bsc_tensor_unsafe _coalesced_ scalar_tensor tril_indices
        triu_indices
    | item _local_scalar_dense is_nonzero record_stream result_type can_cast promote_types
        is_complex is_floating_point is_signed is_inference is_conj is_neg is_leaf is_same_size
        is_set_to is_coalesced is_contiguous is_distributed is_vulkan_available numel size dim
        stride storage_offset sym_size sym_numel sym_stride sym_storage_offset sym_is_contiguous
        sym_constrain_range sym_constrain_range_for_size _functional_sym_constrain_range
        _functional_sym_constrain_range_for_size get_device sparse_dim dense_dim _dimI _dimV _nnz
        _version _is_zerotensor _has_compatible_shallow_copy_type _has_same_storage_numel
        retains_grad output_nr _debug_has_internal_overlap _shape_as_tensor _assert_async
        _assert_scalar _assert_tensor_metadata _functional_assert_async _functional_assert_scalar
        _print _propagate_xla_data _linalg_check_errors qscheme q_scale q_zero_point
        q_per_channel_scales q_per_channel_zero_points q_per_channel_axis cudnn_is_acceptable
        _nnpack_available _use_cudnn_ctc_loss _use_miopen_ctc_loss
        _use_cudnn_rnn_flatten_weight _cufft_get_plan_cache_size _cufft_set_plan_cache_max_size
        _cufft_get_plan_cache_max_size _cufft_clear_plan_cache _cudnn_init_dropout_state
        _amp_update_scale~ _validate_sparse_coo_tensor_args _validate_sparse_csr_tensor_args
        _validate_sparse_csc_tensor_args _validate_sparse_bsr_tensor_args
        _validate_sparse_bsc_tensor_args _validate_sparse_compressed_tensor_args
        _validate_compressed_sparse_indices _make_dep_token profiler::_record_function_enter
        profiler::_record_function_enter_new profiler::_record_function_exit
        inductor_prims::inductor_reserve_rng_state streams::fork streams::join streams::wait_event
        streams::record_event streams::record_stream streams::synchronize_device
        streams::synchronize_event streams::synchronize_stream streams::wait_stream
        streams::sync_dealloc mempool::begin mempool::end export::access_subclass_inner_tensor
        c10d::barrier c10d::monitored_barrier_ c10d::check_for_nan _c10d_functional::wait_tensor
        _c10d_functional::wait_tensors c10d_functional::wait_tensor torchvision::_cuda_version
    0 | fill_ zero_ zeros_like ones_like full_like normal_ uniform_ random_ bernoulli_
        fill zero random uniform exponential~ geometric~ cauchy~ log_normal~ rand_like randn_like
        randint_like fill_diagonal_ _philox_normal_ _philox_uniform_ _philox_randint_
        _fill_mem_eff_dropout_mask_ c10d::broadcast_ c10d::send c10d::recv_ c10d::recv_any_source_
        c10d::allreduce_ c10d::allreduce_coalesced_ c10d::reduce_ _c10d_functional::broadcast
        _c10d_functional::broadcast_ _c10d_functional::isend _c10d_functional::irecv
        c10d_functional::broadcast _foreach_zero _foreach_zero_
    0 0 | clone flip fliplr flipud roll rot90 tril~ triu~ bernoulli poisson binomial multinomial
        _standard_gamma _sample_dirichlet pixel_shuffle pixel_unshuffle channel_shuffle
        native_channel_shuffle contiguous view_copy expand_copy permute_copy transpose_copy t_copy
        alias_copy detach_copy slice_copy select_copy squeeze_copy unsqueeze_copy unbind_copy
        split_copy split_with_sizes_copy diagonal_copy unfold_copy as_strided_copy _reshape_copy
        _reshape_alias_copy _neg_view_copy _conj_copy view_as_real_copy view_as_complex_copy
        lift_fresh_copy narrow_copy to_dense to_sparse to_sparse_csr to_sparse_csc to_sparse_bsr
        to_sparse_bsc _to_dense _to_sparse _to_sparse_csr _to_sparse_csc _to_sparse_bsr
        _to_sparse_bsc _to_cpu to_mkldnn to_dense_backward to_mkldnn_backward to_padded_tensor
        mkldnn_reorder_conv2d_weight mkldnn_reorder_conv3d_weight im2col cat concat concatenate
        stack _stack _cat hstack vstack dstack column_stack row_stack block_diag _foreach_clone
        _nested_from_padded _nested_from_padded_tensor _nested_tensor_from_tensor_list
        _nested_tensor_from_mask _nested_from_padded_and_nested_example nested_to_padded_tensor
        _jagged_to_padded_dense_forward _padded_dense_to_jagged_forward _nested_select_backward
        pad_sequence _pack_padded_sequence _pad_packed_sequence _pack_padded_sequence_backward
        flatten_dense_tensors _chunk_cat _cudnn_rnn_flatten_weight copy_sparse_to_sparse_
        diag diagflat diag_embed cartesian_prod combinations vander
        _make_per_tensor_quantized_tensor _make_per_channel_quantized_tensor
        _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short
        lu_unpack sparse_mask trace_backward value_selecting_reduction_backward
        masked_scatter_backward select_backward slice_backward diagonal_backward
        _nested_sum_backward max_unpool2d max_unpool3d quantized::cat quantized::dropout
        quantized::linear_prepack quantized::linear_prepack_fp16 quantized::conv2d_prepack
        quantized::conv1d_prepack quantized::conv3d_prepack quantized::conv_transpose1d_prepack
        quantized::conv_transpose2d_prepack quantized::conv_transpose3d_prepack
        quantized::linear_unpack quantized::conv2d_unpack mkldnn::_reorder_linear_weight
        mkldnn::_reorder_convolution_weight mkldnn::_reorder_mkldnn_rnn_layer_weight
        mkldnn::_reorder_convolution_transpose_weight onednn::qconv_prepack onednn::qlinear_prepack
        mkl::_mkl_reorder_linear_weight fsdp::all_gather_copy_in fsdp::chunk_cat
        fsdp::split_with_sizes_copy c10d::allgather_ c10d::_allgather_base_ c10d::scatter_
        c10d::allgather_coalesced_ c10d::allgather_into_tensor_coalesced_ c10d::gather_
        c10d::reduce_scatter_ c10d::_reduce_scatter_base_ c10d::reduce_scatter_tensor_coalesced_
        c10d::alltoall_ c10d::alltoall_base_ _c10d_functional::all_reduce
        _c10d_functional::all_reduce_ _c10d_functional::all_reduce_coalesced
        _c10d_functional::all_reduce_coalesced_ _c10d_functional::all_gather_into_tensor
        _c10d_functional::all_gather_into_tensor_out
        _c10d_functional::all_gather_into_tensor_coalesced _c10d_functional::all_to_all_single
        _c10d_functional::reduce_scatter_tensor _c10d_functional::reduce_scatter_tensor_coalesced
        c10d_functional::all_reduce c10d_functional::all_reduce_coalesced
        c10d_functional::all_gather_into_tensor c10d_functional::all_to_all_single
        c10d_functional::all_gather_into_tensor_coalesced c10d_functional::reduce_scatter_tensor
        c10d_functional::reduce_scatter_tensor_coalesced
        _c10d_functional_autograd::all_gather_into_tensor
        _c10d_functional_autograd::all_to_all_single
        _c10d_functional_autograd::reduce_scatter_tensor _dtensor::shard_dim_alltoall
    0 1 | copy_ copy _copy_from _copy_from_and_resize complex shallow_copy_data_
        _foreach_copy~ fsdp::copy_ masked_select
    0 1 0 | masked_fill~ masked_scatter~ select_scatter slice_scatter diagonal_scatter
        as_strided_scatter
    2 2 | index_fill~ index_copy~
"""


def _moves(traffic: tuple[int, ...]) -> Callable[[OpCall], Work]:
    def formula(call: OpCall) -> Work:
        return Work(min_bytes=moved_bytes(call, *traffic))

    return formula


for (_arguments,), _names in rows(_MOVES):
    free_op(*ops(_names))(_moves(tuple(map(int, _arguments.split()))))

# PyTorch's numbers for element types, as they stand in traces.
_SCALAR_TYPES = """
    uint8 int8 int16 int32 int64 float16 float32 float64 complex32 complex64 complex128 bool
    qint8 quint8 qint32 bfloat16
"""


def _scalar_type(position: int | None) -> str:
    return dict(enumerate(_SCALAR_TYPES.split())).get(-1 if position is None else position, "")


# Tensors made by a size: `type where none is named | names`; 6 float32, 4 int64. Their last four
# arguments are type, layout, device and pinning.
_CREATED = """
    6 | zeros ones rand randn eye full new_zeros new_ones new_full linspace logspace normal
        normal_functional hann_window hamming_window blackman_window bartlett_window kaiser_window
    4 | randint randperm
"""


def _creates(default: int) -> Callable[[OpCall], Work]:
    def formula(call: OpCall) -> Work:
        named = len(call.shapes) - 4
        if named < -3:  # the trace has no shapes
            return Work()
        sizes = next(filter(None, map(call.integers, range(max(named, 1)))), None)
        if sizes is None:  # linspace(start, end, steps), eye(n) or (n, m), randperm(n)
            at = (
                (2,) if "space" in call.op else (0, min(1, named - 1)) if "eye" in call.op else (0,)
            )
            sizes = tuple(call.integer(index) or 0 for index in at)
        return Work(min_bytes=prod(sizes) * _itemsize(call, named, default))

    return formula


def _itemsize(call: OpCall, dtype_at: int, default: int) -> int:
    """Return the bytes of the type named, else of the first argument's, else of the default."""
    dtype = _scalar_type(call.integer(dtype_at) if dtype_at > 0 else None)
    known = (dtypes.itemsize(one) for one in (dtype, call.dtype(0), _scalar_type(default)))
    return next(filter(None, known), call.itemsize)


for (_default,), _names in rows(_CREATED):
    free_op(*ops(_names))(_creates(int(_default)))


@free_op("aten::arange", "aten::range")
def arange(call: OpCall) -> Work:
    """`⌈(end − start)/step⌉` numbers of an (end), a (start, end) or a (start, end, step)."""
    if not call.shapes:
        return Work()
    named = len(call.shapes) - 4 or 3  # four arguments are start, end, step and the output
    limits = [number(call, index) or 0.0 for index in range(named)]
    start, end, step = [[0.0, *limits, 1.0], [*limits, 1.0], limits][min(max(named, 1), 3) - 1][:3]
    default = 6 if any("." in call.value(index) for index in range(named)) else 4
    count = max(ceil((end - start) / step), 0) if step else 0
    return Work(min_bytes=count * _itemsize(call, named, default))


@free_op(*ops("to _to_copy type_as _autocast_to_full_precision _autocast_to_reduced_precision"))
def to(call: OpCall) -> Work:
    """Read in one type, written in another; nothing where the type asked for is there already."""
    if call.op == "aten::type_as" or call.has(1):
        wanted = call.dtype(1)
    else:
        numbered = next((call.integer(i) for i in (1, 2) if call.integer(i) is not None), None)
        wanted = _scalar_type(numbered)
    if wanted == call.dtype(0) and call.op != "aten::_to_copy":
        return Work()
    written = dtypes.itemsize(wanted) or call.itemsize_of(0)
    return Work(min_bytes=elements(call, 0) * (call.itemsize_of(0) + written))


@free_op(*ops("gather index_select take take_along_dim embedding index _unsafe_index"))
@free_op(*ops("repeat_interleave"))
def gather(call: OpCall) -> Work:
    """The index read; each element found read and written."""
    at = 2 if call.op in ops("gather index_select take_along_dim") else 1
    index = elements(call, at)
    shape, axis = call.shape(0), call.integer(1)
    row = 1
    if call.op == "aten::embedding":
        row = prod(shape[-1:])
    elif call.op == "aten::index_select" and axis is not None and shape:
        row = prod(shape) // max(shape[axis], 1)
    return Work(min_bytes=moved_bytes(call, at) + 2 * index * row * call.itemsize_of(0))


@free_op("aten::where")
def where(call: OpCall) -> Work:
    """The condition and both sides read, one of their broadcast shape written."""
    size = prod(broadcast(*(call.shape(index) for index in range(3))))
    itemsize = max(call.itemsize_of(1) if call.has(1) else 1, call.itemsize_of(2))
    return Work(min_bytes=moved_bytes(call, 0, 1, 2) + size * itemsize)


@free_op(*ops("repeat tile one_hot"))
def repeat(call: OpCall) -> Work:
    """The input read, and written as often as asked."""
    times = call.integer(1) if call.op == "aten::one_hot" else prod(call.integers(1) or ())
    return Work(min_bytes=moved_bytes(call, 0) * (1 + max(times or 1, 1)))


@free_op(*ops("pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d"))
@free_op(*ops("replication_pad1d replication_pad2d replication_pad3d _pad_enum _pad_circular"))
def pad(call: OpCall) -> Work:
    """The input read, the larger output written; paddings come in pairs from the last axis."""
    sizes, pads = list(call.shape(0)), call.integers(1) or ()
    for axis in range(len(pads) // 2):
        sizes[-1 - axis] += pads[2 * axis] + pads[2 * axis + 1]
    return Work(min_bytes=moved_bytes(call, 0) + prod(sizes) * call.itemsize_of(0))
