// overlap_sample on the CPU: the sampling of csrc/cpu/support/sampling.h, shared out to threads.
// Every sample and every pixel's gradient is computed by one thread, so the bits do not depend on
// their number.
#include <optional>
#include <vector>

#include "../args.h"
#include "support/sampling.h"

namespace densesiam {
namespace {

template <class T>
void sample_maps(const T* in,  // [B, C, H, W]
                 const std::optional<Tensor>& boxes, std::int64_t batch, std::int64_t channels,
                 int height, int width, int rows, int columns, Layout layout,
                 T* out  // [B, C, Kh, Kw]
) {
  using A = Accumulate<T>;
  const Pieces pieces{batch, channels, rows, layout};
  const std::int64_t map = std::int64_t(height) * width, cells = std::int64_t(rows) * columns;
  parallel_blocks(pieces.count(), pieces.cost(columns), [&](std::int64_t begin, std::int64_t end) {
    Scratch<A> buffer(std::int64_t(width) * kGroup);
    Grid<Taps, A> grid;
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const std::int64_t image = pieces.image(piece), channel = pieces.first_channel(piece);
      const Cells part{pieces.first_row(piece), pieces.last_row(piece), 0, columns};
      const std::int64_t offset = std::int64_t(part.first_row) * columns;
      grid.build(boxes, image, columns, width, rows, height);
      vectorised([&](auto vector_width) DENSESIAM_INLINE {
        if (layout == Layout::planar) {
          sample_planes<vector_width()>(
              in + (image * channels + channel) * map, pieces.planes(piece), height, width, grid,
              part, out + (image * channels + channel) * cells + offset, cells, 1, buffer.data());
        } else {
          sample_pixels(in + image * map * channels, channels, width, grid, part,
                        out + (image * cells + offset) * channels);
        }
      });
    }
  });
}

Tensor overlap_sample(const Tensor& features, const Tensor& boxes, std::vector<std::int64_t> size) {
  check_map("overlap_sample", "features", features);
  check_boxes("overlap_sample", "boxes", boxes, features);
  check_size("overlap_sample", size);
  const Layout layout = layout_of(features);
  const Tensor source = in_layout(features, layout);
  const std::optional<Tensor> box = checked_boxes("overlap_sample", "boxes", boxes);
  Tensor out = empty_in_layout({features.size(0), features.size(1), size[0], size[1]}, layout,
                               features.scalar_type(), features);
  if (out.numel() == 0) return out;
  dispatch_float("overlap_sample", source.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    sample_maps(data<T>(source), box, features.size(0), features.size(1), int(features.size(2)),
                int(features.size(3)), int(size[0]), int(size[1]), layout, mutable_data<T>(out));
  });
  return out;
}

Tensor overlap_sample_backward(const Tensor& grad, const Tensor& boxes,
                               std::vector<std::int64_t> size, bool channels_last) {
  const char* op = "overlap_sample_backward";
  check_map(op, "grad", grad);
  check_boxes(op, "boxes", boxes, grad);
  check_size(op, size);
  const Layout layout = channels_last ? Layout::pixels : Layout::planar;
  const Tensor source = in_layout(grad, layout);
  const std::optional<Tensor> box = checked_boxes(op, "boxes", boxes);
  Tensor out = empty_in_layout({grad.size(0), grad.size(1), size[0], size[1]}, layout,
                               grad.scalar_type(), grad);
  if (out.numel() == 0) return out;
  dispatch_float(op, source.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    gather_maps(SampleGradients<T>{data<T>(source)}, box, grad.size(0), grad.size(1), int(size[0]),
                int(size[1]), int(grad.size(2)), int(grad.size(3)), layout, mutable_data<T>(out));
  });
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(CPU, m) {
  m.impl("overlap_sample", TORCH_BOX(&densesiam::overlap_sample));
  m.impl("overlap_sample_backward", TORCH_BOX(&densesiam::overlap_sample_backward));
}
