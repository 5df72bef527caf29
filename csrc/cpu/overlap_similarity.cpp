// overlap_similarity on the CPU: a tile of samples of p and z is interpolated into working memory
// and compared there, so that samples are never stored whole. Backward samples again, writes the
// gradient of the samples, and gathers from it.
#include <numeric>
#include <optional>
#include <vector>

#include "pixel_loss.h"
#include "support/sampling.h"

namespace densesiam {
namespace {

struct Map {
  int height, width;
  Layout layout;

  std::int64_t size() const { return std::int64_t(height) * width; }
};

// The grid of samples of each image, cut into tiles: as many whole rows as fit, or pieces of one.
struct SampleTiles {
  std::int64_t batch, channels;
  int rows, columns;

  int tile_columns() const { return std::min(columns, kTile); }
  int tile_rows() const { return std::min(rows, kTile / tile_columns()); }
  std::int64_t across() const { return ceil_divide(columns, tile_columns()); }
  std::int64_t per_image() const { return across() * ceil_divide(rows, tile_rows()); }
  std::int64_t count() const { return batch * per_image(); }
  std::int64_t samples() const { return std::int64_t(rows) * columns; }
  std::int64_t image(std::int64_t tile) const { return tile / per_image(); }
  Cells cells(std::int64_t tile) const {
    const int row = int(tile % per_image() / across()) * tile_rows();
    const int column = int(tile % per_image() % across()) * tile_columns();
    return {row, std::min(rows, row + tile_rows()), column,
            std::min(columns, column + tile_columns())};
  }
};

int count_of(const Cells& cells) { return (cells.last_row - cells.first_row) * cells.columns(); }
// A tile's samples lie side by side in the image's grid.
std::int64_t start_of(const Cells& cells, const SampleTiles& tiles) {
  return std::int64_t(cells.first_row) * tiles.columns + cells.first_column;
}

// One of the two maps, with what it takes to sample tiles of it.
template <class T>
class Sampler {
  using A = Accumulate<T>;

 public:
  Sampler(const T* map, const Map& shape, const std::optional<Tensor>& boxes,
          const SampleTiles& tiles)
      : map_(map),
        shape_(shape),
        boxes_(boxes),
        tiles_(tiles),
        tile_(tiles.channels * kTileStride),
        buffer_(shape.layout == Layout::planar ? std::int64_t(kGroup) * shape.width
                                               : tiles.channels * kTile) {}

  // Channel c of the tile's samples at row c of the result, kTileStride apart.
  A* sample(std::int64_t image, const Cells& cells) {
    const std::int64_t C = tiles_.channels;
    grid_.build(boxes_, image, tiles_.columns, shape_.width, tiles_.rows, shape_.height);
    const T* in = map_ + image * C * shape_.size();
    vectorised([&](auto width) DENSESIAM_INLINE {
      if (shape_.layout == Layout::planar) {
        for (std::int64_t c = 0; c < C; c += kGroup) {
          sample_planes<width()>(in + c * shape_.size(), int(std::min<std::int64_t>(kGroup, C - c)),
                                 shape_.height, shape_.width, grid_, cells,
                                 tile_.data() + c * kTileStride, kTileStride, buffer_.data());
        }
      } else {
        sample_pixels(in, C, shape_.width, grid_, cells, buffer_.data());
        transpose<width()>(buffer_.data(), C, count_of(cells), C, tile_.data(), kTileStride);
      }
    });
    return tile_.data();
  }

 private:
  const T* map_;
  Map shape_;
  const std::optional<Tensor>& boxes_;
  SampleTiles tiles_;
  Scratch<A> tile_, buffer_;
  Grid<Taps, A> grid_;
};

// One side of a call: the map, its shape and its boxes, in the layout it is read in.
struct Side {
  Tensor tensor;
  Map map;
  std::optional<Tensor> boxes;

  template <class T>
  Sampler<T> sampler(const SampleTiles& tiles) const {
    return {data<T>(tensor), map, boxes, tiles};
  }
};

template <class Loss, class T>
void forward(const Side& p,                                             // [B, C, H, W]
             const Side& z,                                             // [B, C, H', W']
             const SampleTiles& tiles, Weights<Accumulate<T>> weights,  // [B]
             Accumulate<T>* statistics,                                 // [B, 2, Kh Kw]
             Accumulate<T>* losses,                                     // [B, Kh, Kw] or null
             Accumulate<T>* mean                                        // [] or null
) {
  using A = Accumulate<T>;
  const std::int64_t C = tiles.channels, S = tiles.samples();
  std::vector<double> partial(mean ? tiles.count() : 0);
  parallel_blocks(tiles.count(), C * kTile * 4, [&](std::int64_t begin, std::int64_t end) {
    Sampler<T> p_samples = p.sampler<T>(tiles), z_samples = z.sampler<T>(tiles);
    TileLosses<A> out;
    for (std::int64_t tile = begin; tile < end; ++tile) {
      const std::int64_t image = tiles.image(tile);
      const Cells cells = tiles.cells(tile);
      const std::int64_t start = start_of(cells, tiles);
      const int count = count_of(cells);
      const A weight = weights[image];
      if (weight == A(0)) {
        out.clear(count);
      } else {
        const Tile<const A> a{p_samples.sample(image, cells), kTileStride};
        const Tile<const A> b{z_samples.sample(image, cells), kTileStride};
        vectorised([&](auto) DENSESIAM_INLINE {
          Loss::template tile<A>(a, b, C, count, out);
          for (int i = 0; i < count; ++i) out.loss[i] *= weight;
        });
      }
      std::copy_n(out.first, count, statistics + image * 2 * S + start);
      std::copy_n(out.second, count, statistics + (image * 2 + 1) * S + start);
      if (losses) std::copy_n(out.loss, count, losses + image * S + start);
      if (mean) partial[tile] = std::accumulate(out.loss, out.loss + count, 0.0);
    }
  });
  if (mean) {
    *mean =
        A(std::accumulate(partial.begin(), partial.end(), 0.0) * double(weights.mean_factor(S)));
  }
}

// The gradient of p's samples, (B, C, rows, columns) in p's layout.
template <class Loss, class T>
void sample_gradients(const Accumulate<T>* grad,  // [] if mean, else [B, Kh, Kw]
                      bool mean, const Side& p,   // [B, C, H, W]
                      const Side& z,              // [B, C, H', W']
                      const SampleTiles& tiles, Weights<Accumulate<T>> weights,  // [B]
                      const Accumulate<T>* statistics,                           // [B, 2, Kh Kw]
                      Accumulate<T>* out                                         // [B, C, Kh, Kw]
) {
  using A = Accumulate<T>;
  const std::int64_t C = tiles.channels, S = tiles.samples();
  const A mean_grad = mean ? *grad * weights.mean_factor(S) : A(0);
  parallel_blocks(tiles.count(), C * kTile * 4, [&](std::int64_t begin, std::int64_t end) {
    Sampler<T> p_samples = p.sampler<T>(tiles), z_samples = z.sampler<T>(tiles);
    A scale[kTile];
    for (std::int64_t tile = begin; tile < end; ++tile) {
      const std::int64_t image = tiles.image(tile);
      const Cells cells = tiles.cells(tile);
      const std::int64_t start = start_of(cells, tiles);
      const int count = count_of(cells);
      const A weight = weights[image];
      A* const a = p_samples.sample(image, cells);
      const A* const b = z_samples.sample(image, cells);
      const A* first = statistics + image * 2 * S + start;
      for (int i = 0; i < count; ++i) {
        scale[i] = weight * (mean ? mean_grad : grad[image * S + start + i]);
      }
      vectorised([&](auto width) DENSESIAM_INLINE {
        gradient_of_rows<Loss>(a, b, a, kTileStride, C, count, first, first + S, scale);
        if (weight == A(0)) {  // 0 * NaN is NaN
          std::fill_n(a, C * kTileStride, A(0));
        }
        store_tile<width()>(a, C, S, p.map.layout, start, count, out + image * C * S);
      });
    }
  });
}

Side side_of(const char* op, const Tensor& tensor, const char* name,
             const std::optional<Tensor>& boxes) {
  const Layout layout = layout_of(tensor);
  return {in_layout(tensor, layout),
          {int(tensor.size(2)), int(tensor.size(3)), layout},
          checked_boxes(op, name, boxes)};
}

SampleTiles tiles_of(const char* op, const Tensor& p, const Tensor& z,
                     const std::optional<Tensor>& boxes_p, const std::optional<Tensor>& boxes_z,
                     const std::vector<std::int64_t>& size) {
  check_overlap(op, p, z, boxes_p, boxes_z, size);
  return {p.size(0), p.size(1), int(size[0]), int(size[1])};
}

std::tuple<Tensor, Tensor> overlap_similarity(const Tensor& p, const Tensor& z,
                                              std::optional<Tensor> boxes_p,
                                              std::optional<Tensor> boxes_z,
                                              std::vector<std::int64_t> size, std::string kind,
                                              std::optional<Tensor> weight, std::string reduction) {
  const char* op = "overlap_similarity";
  const SampleTiles tiles = tiles_of(op, p, z, boxes_p, boxes_z, size);
  const bool mean = is_mean(op, reduction);
  const Side p_side = side_of(op, p, "boxes_p", boxes_p);
  const Side z_side = side_of(op, z, "boxes_z", boxes_z);
  const ScalarType dtype = accumulate_type(p.scalar_type());
  const std::optional<Tensor> weights = checked_weight(op, weight, p);
  Tensor loss = empty_in_layout(mean ? Sizes{} : Sizes{tiles.batch, tiles.rows, tiles.columns},
                                Layout::planar, dtype, p);
  Tensor statistics = empty_in_layout({tiles.batch, 2, tiles.samples()}, Layout::planar, dtype, p);
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    A* result = mutable_data<A>(loss);
    dispatch_kind(op, kind, [&](auto loss_type) {
      using Loss = typename decltype(loss_type)::type;
      forward<Loss, T>(p_side, z_side, tiles, {weights, tiles.batch}, mutable_data<A>(statistics),
                       mean ? nullptr : result, mean ? result : nullptr);
    });
  });
  return {loss, statistics};
}

Tensor overlap_similarity_backward(const Tensor& grad, const Tensor& p, const Tensor& z,
                                   std::optional<Tensor> boxes_p, std::optional<Tensor> boxes_z,
                                   std::vector<std::int64_t> size, std::string kind,
                                   std::optional<Tensor> weight, std::string reduction,
                                   const Tensor& statistics) {
  const char* op = "overlap_similarity_backward";
  const SampleTiles tiles = tiles_of(op, p, z, boxes_p, boxes_z, size);
  const bool mean = is_mean(op, reduction);
  const Side p_side = side_of(op, p, "boxes_p", boxes_p);
  const Side z_side = side_of(op, z, "boxes_z", boxes_z);
  const std::optional<Tensor> weights = checked_weight(op, weight, p);
  const Tensor upstream = checked_grad(op, grad, mean, {tiles.batch, tiles.rows, tiles.columns}, p);
  const Tensor kept = checked_kept(op, "statistics", statistics, accumulate_type(p.scalar_type()),
                                   {tiles.batch, 2, tiles.samples()}, p);
  const Map& map = p_side.map;
  Tensor out = empty_in_layout({tiles.batch, tiles.channels, map.height, map.width}, map.layout,
                               p.scalar_type(), p);
  if (out.numel() == 0) return out;
  Tensor samples = empty_in_layout({tiles.batch, tiles.channels, tiles.rows, tiles.columns},
                                   Layout::planar, accumulate_type(p.scalar_type()), p);
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    dispatch_kind(op, kind, [&](auto loss_type) {
      using Loss = typename decltype(loss_type)::type;
      sample_gradients<Loss, T>(data<A>(upstream), mean, p_side, z_side, tiles,
                                {weights, tiles.batch}, data<A>(kept), mutable_data<A>(samples));
    });
    gather_maps<A, T>(data<A>(samples), p_side.boxes, tiles.batch, tiles.channels, map.height,
                      map.width, tiles.rows, tiles.columns, map.layout, mutable_data<T>(out));
  });
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(CPU, m) {
  m.impl("overlap_similarity", TORCH_BOX(&densesiam::overlap_similarity));
  m.impl("overlap_similarity_backward", TORCH_BOX(&densesiam::overlap_similarity_backward));
}
