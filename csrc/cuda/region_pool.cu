// region_pool under the CUDA key: checks, allocation and launches. The kernels are in
// region_pool.cuh.
#include "region_pool.cuh"
#include "support/stream.h"

namespace densesiam {
namespace {

RegionShape region_shape(const char* op, const Tensor& features, const Tensor& logits) {
  check_regions(op, features, logits);
  check_images(op, features);
  check_images(op, logits);
  return {unsigned(features.size(0)), unsigned(features.size(1)), unsigned(logits.size(1)),
          unsigned(features.size(2))};
}

template <bool ChannelsLast, class T>
Map<ChannelsLast, const T> map_of(const Tensor& tensor) {
  return {data<T>(tensor), unsigned(tensor.size(1)), unsigned(tensor.size(2))};
}
template <bool ChannelsLast, class T>
Map<ChannelsLast, T> mutable_map_of(const Tensor& tensor) {
  return {mutable_data<T>(tensor), unsigned(tensor.size(1)), unsigned(tensor.size(2))};
}

// Whether a map's rows can be read in 16-byte packs.
template <bool ChannelsLast, class T>
bool reads_packs(const Map<ChannelsLast, const T>& map) {
  return packs_align<T>(ChannelsLast ? map.rows : map.pixels, map.base, map.base);
}

// Calls body(a constant: whether channels are last).
template <class Body>
void dispatch_layout(Layout layout, const Body& body) {
  layout == Layout::pixels ? body(std::true_type{}) : body(std::false_type{});
}

// Calls body(regions of a tile, whether features are read in packs, whether logits are), all
// compile-time constants. Where channels come last, features may have packs and logits none;
// otherwise both have the pixels' or, but for unaligned memory, neither.
template <bool ChannelsLast, class Body>
void dispatch_tile(bool few, bool feature_packs, bool logit_packs, const Body& body) {
  const auto with_packs = [&](auto tile) {
    if (feature_packs && logit_packs) return body(tile, std::true_type{}, std::true_type{});
    if constexpr (ChannelsLast) {
      if (feature_packs) return body(tile, std::true_type{}, std::false_type{});
    }
    body(tile, std::false_type{}, std::false_type{});
  };
  if (few) {
    with_packs(std::integral_constant<int, 32>{});
  } else {
    with_packs(std::integral_constant<int, int(kMostRegions)>{});
  }
}

// Regions of a tile in backward's kernels of two products: in float64 those of 128 are more than a
// block's shared memory; half types have these kernels for more than 128 regions alone.
template <class T, int Regions>
constexpr int kTileRegions = sizeof(T) == 8   ? 32
                             : sizeof(T) == 2 ? int(kMostRegions)
                                              : Regions;

template <int Regions, bool ChannelsLast, bool FeaturePacks, bool LogitPacks, class T>
constexpr auto forward_kernel() {
  if constexpr (sizeof(T) == 2) {
    return &region_pool_forward_half<Regions, ChannelsLast, FeaturePacks, LogitPacks, T>;
  } else {
    return &region_pool_forward<Regions, ChannelsLast, FeaturePacks, LogitPacks, T>;
  }
}

std::tuple<Tensor, Tensor, Tensor> region_pool(const Tensor& features, const Tensor& logits) {
  const char* op = "region_pool";
  const RegionShape shape = region_shape(op, features, logits);
  const OnDevice device(features);
  const cudaStream_t stream = device.stream();
  const Layout layout = layout_of(features);
  const Tensor f = in_layout(features, layout), l = in_layout(logits, layout);
  const ScalarType dtype = accumulate_type(features.scalar_type());
  const std::int64_t B = shape.batch, N = shape.regions, C = shape.channels, P = shape.pixels;
  Tensor regions = torch::stable::new_empty(features, {B, N, C}, dtype);
  check_images(op, regions);
  Tensor mass = torch::stable::new_empty(features, {B, N}, dtype);
  Tensor log_sum = torch::stable::new_empty(features, {B, P}, dtype);
  if (B == 0 || P == 0) {
    return {torch::stable::fill_(regions, 0.0), torch::stable::fill_(mass, 0.0), log_sum};
  }
  dispatch_float(op, features.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    dispatch_layout(layout, [&](auto last) {
      constexpr bool kLast = decltype(last)::value;
      const auto f_map = map_of<kLast, T>(f), l_map = map_of<kLast, T>(l);
      const bool fused = shape.regions <= kMostRegions;
      if (!fused) {
        launch(region_log_sum<kLast, T>, dim3(unsigned(divide_up(P, kThreads) * B)), dim3(kThreads),
               0, stream, l_map, mutable_data<A>(log_sum));
      }
      const auto run = [&](auto tile, auto f_packs, auto l_packs) {
        RegionSplit split = split_regions<decltype(tile)::value, T>(shape);
        const bool whole = split.splits == 1;
        const std::int64_t S = split.splits;
        const Tensor parts = whole ? regions : torch::stable::new_empty(regions, {S, B, N, C});
        const Tensor mass_parts = whole ? mass : torch::stable::new_empty(mass, {S, B, N});
        const unsigned blocks =
            split.channel_tiles * split.region_tiles * split.splits * shape.batch;
        launch(forward_kernel<decltype(tile)::value, kLast, decltype(f_packs)::value,
                              decltype(l_packs)::value, T>(),
               dim3(blocks), dim3(kThreads), 0, stream, f_map, l_map, shape, split, fused,
               mutable_data<A>(log_sum), mutable_data<A>(parts), mutable_data<A>(mass_parts));
        if (whole) return;
        launch(sum_parts<A>, dim3(unsigned(divide_up(B * N * (C + 1), kThreads))), dim3(kThreads),
               0, stream, Parts<A>{data<A>(parts), B * N * C, mutable_data<A>(regions)},
               Parts<A>{data<A>(mass_parts), B * N, mutable_data<A>(mass)}, split.splits);
      };
      dispatch_tile<kLast>(shape.regions <= 32, reads_packs(f_map), reads_packs(l_map), run);
    });
  });
  check_launch(op);
  return {regions, mass, log_sum};
}

std::tuple<Tensor, Tensor> region_pool_backward(const Tensor& grad, std::optional<Tensor> grad_mass,
                                                const Tensor& features, const Tensor& logits,
                                                const Tensor& log_sum, bool need_features,
                                                bool need_logits) {
  const char* op = "region_pool_backward";
  const RegionShape shape = region_shape(op, features, logits);
  const OnDevice device(features);
  const cudaStream_t stream = device.stream();
  const Layout layout = layout_of(features);
  const Tensor f = in_layout(features, layout), l = in_layout(logits, layout);
  const Sizes pooled{features.size(0), logits.size(1), features.size(1)};
  const ScalarType dtype = accumulate_type(features.scalar_type());
  const Tensor upstream = checked_kept(op, "grad", grad, dtype, pooled, features);
  const Tensor kept =
      checked_kept(op, "log_sum", log_sum, dtype, {features.size(0), features.size(2)}, features);
  check_optional(op, "grad_mass", grad_mass, dtype, {features.size(0), logits.size(1)}, features);
  const std::optional<Tensor> upstream_mass =
      grad_mass ? std::optional(in_layout(*grad_mass, Layout::planar)) : std::nullopt;
  const auto empty_like = [&](const Tensor& tensor) {
    return empty_in_layout({tensor.size(0), tensor.size(1), tensor.size(2)}, layout,
                           tensor.scalar_type(), tensor);
  };
  const Tensor nothing = torch::stable::new_empty(features, {0});
  Tensor grad_features = need_features ? empty_like(features) : nothing;
  Tensor grad_logits = need_logits ? empty_like(logits) : nothing;
  dispatch_float(op, features.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    const bool few = shape.regions <= 32 || sizeof(A) == 8;
    const auto grad_map = map_of<false, A>(upstream);
    dispatch_layout(layout, [&](auto last) {
      constexpr bool kLast = decltype(last)::value;
      const auto f_map = map_of<kLast, T>(f), l_map = map_of<kLast, T>(l);
      const bool g_packs = reads_packs(grad_map), l_packs = reads_packs(l_map);
      if constexpr (sizeof(T) == 2) {
        if (shape.regions <= kMostRegions) {
          if (grad_features.numel() + grad_logits.numel() == 0) return;
          const std::int64_t C = divide_up(shape.channels ? shape.channels : 1, kSlice) * kSlice;
          const auto out = [](const Tensor& tensor, bool wanted) {
            return wanted ? mutable_map_of<kLast, T>(tensor) : Map<kLast, T>{nullptr, 0, 0};
          };
          const auto wide = [](const Map<kLast, T>& map) {
            return reads_packs(Map<kLast, const T>{map.base, map.rows, map.pixels});
          };
          const auto f_out = out(grad_features, need_features);
          const auto l_out = out(grad_logits, need_logits);
          dispatch_tile<kLast>(few, reads_packs(f_map), l_packs, [&](auto t, auto fp, auto lp) {
            constexpr int kRegions = decltype(t)::value;
            const Tensor operands = torch::stable::new_empty(f, {shape.batch, kRegions, C});
            const Tensor scales = torch::stable::new_empty(upstream, {shape.batch});
            launch(g_packs ? region_pool_operands<true, T> : region_pool_operands<false, T>,
                   dim3(shape.batch * operand_blocks(kRegions, unsigned(C))), dim3(kThreads), 0,
                   stream, data<A>(upstream), shape, kRegions, unsigned(C),
                   mutable_data<T>(operands), mutable_data<A>(scales));
            const unsigned blocks =
                unsigned(divide_up(shape.pixels, kBlockPixels<kRegions>) * shape.batch);
            launch(region_pool_backward_half<kRegions, kLast, decltype(fp)::value,
                                             decltype(lp)::value, T>,
                   dim3(blocks), dim3(kThreads), 0, stream, data<T>(operands), data<A>(scales),
                   upstream_mass ? data<A>(*upstream_mass) : nullptr, f_map, l_map, data<A>(kept),
                   shape, unsigned(C), wide(f_out), f_out, wide(l_out), l_out);
          });
          return;
        }
      }
      if (grad_features.numel() > 0) {
        const unsigned blocks = unsigned(divide_up(shape.pixels, kTile) * shape.batch);
        dispatch_tile<kLast>(few, g_packs, l_packs, [&](auto tile, auto g_packs, auto l_packs) {
          constexpr int kRegions = kTileRegions<T, decltype(tile)::value>;
          launch(region_pool_features<kRegions, kLast, decltype(g_packs)::value,
                                      decltype(l_packs)::value, T>,
                 dim3(blocks), dim3(kThreads), 0, stream, grad_map, l_map, data<A>(kept), shape,
                 reads_packs(map_of<kLast, T>(grad_features)),
                 mutable_map_of<kLast, T>(grad_features));
        });
      }
      if (grad_logits.numel() > 0) {
        const bool f_packs = reads_packs(f_map) && g_packs;
        dispatch_tile<kLast>(few, f_packs, l_packs, [&](auto tile, auto f_packs, auto l_packs) {
          constexpr int kRegions = kTileRegions<T, decltype(tile)::value>;
          const unsigned blocks =
              unsigned(divide_up(shape.pixels, kPixels<kRegions, T>) * shape.batch);
          launch(region_pool_logits<kRegions, kLast, decltype(f_packs)::value,
                                    decltype(l_packs)::value, T>,
                 dim3(blocks), dim3(kThreads), 0, stream, grad_map,
                 upstream_mass ? data<A>(*upstream_mass) : nullptr, f_map, l_map, data<A>(kept),
                 shape, mutable_map_of<kLast, T>(grad_logits));
        });
      }
    });
  });
  check_launch(op);
  // The gradients' layouts are those of what they belong to.
  return {grad_features, need_logits ? in_layout(grad_logits, layout_of(logits)) : grad_logits};
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(DENSESIAM_DEVICE_KEY, m) {
  m.impl("region_pool", TORCH_BOX(&densesiam::region_pool));
  m.impl("region_pool_backward", TORCH_BOX(&densesiam::region_pool_backward));
}
