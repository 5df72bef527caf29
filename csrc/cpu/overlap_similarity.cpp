// overlap_similarity on the CPU: a tile of samples of p and z is interpolated into memory that
// stays in the cache, and compared there. Where a gradient will be asked for, forward leaves that
// of the loss to each sample of p: the samples are at hand, and to compute them again would read
// both maps twice. Backward gathers from it. Channels lie side by side there, (B, Kh, Kw, C),
// whatever the layout of the maps: both ends of it work along channels.
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
  int most = kTile;  // samples a tile

  int tile_columns() const { return std::min(columns, most); }
  int tile_rows() const { return std::min(rows, most / tile_columns()); }
  int tile_samples() const { return tile_rows() * tile_columns(); }
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

// Between the channels of a planar tile in working memory: as few as there are samples, but for
// kTileStride's reason.
std::int64_t stride_of(const SampleTiles& tiles) {
  return tiles.tile_samples() + (tiles.tile_samples() % 16 == 0 ? 16 : 0);
}

// One of the two maps, with what it takes to sample tiles of it in either layout.
template <class T>
class Sampler {
  using A = Accumulate<T>;

 public:
  Sampler(const T* map, const Map& shape, const std::optional<Tensor>& boxes,
          const SampleTiles& tiles, Layout wanted)
      : map_(map),
        shape_(shape),
        boxes_(boxes),
        tiles_(tiles),
        wanted_(wanted),
        row_(shape.layout == Layout::planar ? std::int64_t(kGroup) * shape.width : 0),
        pixels_(shape.layout == Layout::pixels && wanted == Layout::planar
                    ? tiles.channels * tiles.tile_samples()
                    : 0) {}

  // Places of the samples of that image, before they are asked for.
  void find(std::int64_t image) {
    grid_.build(boxes_, image, tiles_.columns, shape_.width, tiles_.rows, shape_.height);
  }
  // The tile's samples: planar, channel c at out + c * stride; else sample i at out + i * C.
  template <int Bytes>
  DENSESIAM_HD void sample(std::int64_t image, const Cells& cells, A* out, std::int64_t stride) {
    const std::int64_t C = tiles_.channels;
    const T* in = map_ + image * C * shape_.size();
    if (shape_.layout == Layout::planar) {
      const bool planar = wanted_ == Layout::planar;
      const std::int64_t plane = planar ? stride : 1, cell = planar ? 1 : C;
      for (std::int64_t c = 0; c < C; c += kGroup) {
        sample_planes<Bytes>(in + c * shape_.size(), int(std::min<std::int64_t>(kGroup, C - c)),
                             shape_.height, shape_.width, grid_, cells, out + c * plane, plane,
                             cell, row_.data());
      }
    } else if (wanted_ == Layout::planar) {
      sample_pixels(in, C, shape_.width, grid_, cells, pixels_.data());
      transpose<Bytes>(pixels_.data(), C, count_of(cells), C, out, stride);
    } else {
      sample_pixels(in, C, shape_.width, grid_, cells, out);
    }
  }

 private:
  const T* map_;
  Map shape_;
  const std::optional<Tensor>& boxes_;
  SampleTiles tiles_;
  Layout wanted_;
  Scratch<A> row_, pixels_;
  Grid<Taps, A> grid_;
};

// One side of a call: the map, its shape and its boxes, in the layout it is read in.
struct Side {
  Tensor tensor;
  Map map;
  std::optional<Tensor> boxes;

  template <class T>
  Sampler<T> sampler(const SampleTiles& tiles, Layout wanted) const {
    return {data<T>(tensor), map, boxes, tiles, wanted};
  }
};

// What comes of the samples, each null where it is not wanted. Without losses the statistics are
// those of a forward, and read.
template <class A>
struct Outcome {
  A *mean, *losses;  // [], [B, Kh, Kw]: one of them, or none
  A* statistics;     // [B, 2, Kh Kw]
  A* gradients;      // [B, Kh, Kw, C]: d loss / d sample of p, whatever its weight
};

template <class Loss, class T>
void compare(const Side& p,                          // [B, C, H, W]
             const Side& z,                          // [B, C, H', W']
             SampleTiles tiles,                      // of [B, C, Kh, Kw]
             const Weights<Accumulate<T>>& weights,  // [B]
             const Outcome<Accumulate<T>>& to) {
  using A = Accumulate<T>;
  const std::int64_t C = tiles.channels, S = tiles.samples();
  const bool forward = to.mean || to.losses;
  const bool direct = kTakesPixels<Loss, A> && C >= kFewChannels;
  const Layout layout = direct ? Layout::pixels : Layout::planar;
  // Where planes are read, neighbouring rows of samples share what lies in one line of the cache.
  if (direct && p.map.layout == Layout::pixels) {
    tiles.most = pixels_a_tile(C);
  }
  // p's samples lie where their gradients will, if the work is in that layout.
  const bool in_place = to.gradients && direct;
  const std::int64_t stride = stride_of(tiles);
  std::vector<double> partial(to.mean ? tiles.count() : 0);
  const auto work = [&](std::int64_t begin, std::int64_t end) {
    Sampler<T> p_samples = p.sampler<T>(tiles, layout), z_samples = z.sampler<T>(tiles, layout);
    Scratch<A> p_scratch(in_place ? 0 : C * stride), z_scratch(C * stride);
    TileLosses<A> out;
    A ones[kTile];
    std::fill_n(ones, kTile, A(1));
    for (std::int64_t tile = begin; tile < end; ++tile) {
      const std::int64_t image = tiles.image(tile);
      const Cells cells = tiles.cells(tile);
      const std::int64_t start = start_of(cells, tiles);
      const int count = count_of(cells);
      const A weight = weights[image];
      A* const gradients = to.gradients ? to.gradients + (image * S + start) * C : nullptr;
      A* const statistics = to.statistics ? to.statistics + image * 2 * S + start : nullptr;
      if (weight == A(0)) {
        out.clear(count);
        if (gradients) std::fill_n(gradients, count * C, A(0));
      } else {
        A* const a = in_place ? gradients : p_scratch.data();
        A* const b = z_scratch.data();
        p_samples.find(image);
        z_samples.find(image);
        vectorised([&](auto width) DENSESIAM_INLINE {
          p_samples.template sample<width()>(image, cells, a, stride);
          z_samples.template sample<width()>(image, cells, b, stride);
          if (!forward) {
            std::copy_n(statistics, count, out.first);
            std::copy_n(statistics + S, count, out.second);
          } else if (direct) {
            if constexpr (kTakesPixels<Loss, A>) {
              Loss::template pixels<width()>(a, b, C, count, out);
            }
          } else {
            Loss::template tile<width(), A>({a, stride}, {b, stride}, C, count, out);
          }
          for (int i = 0; forward && i < count; ++i) out.loss[i] *= weight;
          if (to.mean) partial[tile] = sum_of(out.loss, count);
          if (!gradients) return;
          if (direct) {
            gradient_of_pixels<Loss>(a, b, C, count, out.first, out.second);
          } else {
            gradient_of_rows<Loss>(a, b, a, stride, C, count, out.first, out.second, ones);
            transpose<width()>(a, stride, C, count, gradients, C);
          }
        });
      }
      if (!forward) continue;
      if (statistics) {
        std::copy_n(out.first, count, statistics);
        std::copy_n(out.second, count, statistics + S);
      }
      if (to.losses) std::copy_n(out.loss, count, to.losses + image * S + start);
    }
  };
  parallel_blocks(tiles.count(), C * tiles.tile_samples() * 4, work);
  if (to.mean) {
    *to.mean =
        A(std::accumulate(partial.begin(), partial.end(), 0.0) * double(weights.mean_factor(S)));
  }
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
                                              std::optional<Tensor> weight, std::string reduction,
                                              bool keep) {
  const char* op = "overlap_similarity";
  const SampleTiles tiles = tiles_of(op, p, z, boxes_p, boxes_z, size);
  const bool mean = is_mean(op, reduction);
  const Side p_side = side_of(op, p, "boxes_p", boxes_p);
  const Side z_side = side_of(op, z, "boxes_z", boxes_z);
  const ScalarType dtype = accumulate_type(p.scalar_type());
  const std::optional<Tensor> weights = checked_weight(op, weight, p);
  Tensor loss = empty_in_layout(mean ? Sizes{} : Sizes{tiles.batch, tiles.rows, tiles.columns},
                                Layout::planar, dtype, p);
  Tensor kept = empty_in_layout(keep ? Sizes{tiles.batch, tiles.rows, tiles.columns, tiles.channels}
                                     : Sizes{tiles.batch, 2, tiles.samples()},
                                Layout::planar, dtype, p);
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    A *result = mutable_data<A>(loss), *rest = mutable_data<A>(kept);
    const Outcome<A> to{mean ? result : nullptr, mean ? nullptr : result, keep ? nullptr : rest,
                        keep ? rest : nullptr};
    dispatch_kind(op, kind, [&](auto loss_type) {
      compare<typename decltype(loss_type)::type, T>(p_side, z_side, tiles,
                                                     {weights, tiles.batch, mean}, to);
    });
  });
  return {loss, kept};
}

// What the gradient of each sample is still to be multiplied by: weights and upstream gradient.
template <class A>
std::vector<A> scales_of_samples(const A* grad,  // [] if mean, else [B, Kh, Kw]
                                 bool mean, const SampleTiles& tiles, const Weights<A>& weights) {
  const std::int64_t S = tiles.samples();
  const A mean_grad = mean ? *grad * weights.mean_factor(S) : A(0);
  std::vector<A> scales(tiles.batch * S);
  for (std::int64_t i = 0; i < tiles.batch * S; ++i) {
    const A weight = weights[i / S];
    scales[i] = weight == A(0) ? A(0) : weight * (mean ? mean_grad : grad[i]);  // 0 * NaN is NaN
  }
  return scales;
}

Tensor overlap_similarity_backward(const Tensor& grad, const Tensor& p, const Tensor& z,
                                   std::optional<Tensor> boxes_p, std::optional<Tensor> boxes_z,
                                   std::vector<std::int64_t> size, std::string kind,
                                   std::optional<Tensor> weight, std::string reduction,
                                   const Tensor& kept) {
  const char* op = "overlap_similarity_backward";
  const SampleTiles tiles = tiles_of(op, p, z, boxes_p, boxes_z, size);
  const bool mean = is_mean(op, reduction);
  const Side p_side = side_of(op, p, "boxes_p", boxes_p);
  const Side z_side = side_of(op, z, "boxes_z", boxes_z);
  const std::optional<Tensor> weights = checked_weight(op, weight, p);
  const Tensor upstream = checked_grad(op, grad, mean, {tiles.batch, tiles.rows, tiles.columns}, p);
  const ScalarType dtype = accumulate_type(p.scalar_type());
  const Sizes samples{tiles.batch, tiles.rows, tiles.columns, tiles.channels};
  const bool keeps = kept.dim() == 4;
  const Tensor source = checked_kept(op, "kept", kept, dtype,
                                     keeps ? samples : Sizes{tiles.batch, 2, tiles.samples()}, p);
  const Map& map = p_side.map;
  Tensor out = empty_in_layout({tiles.batch, tiles.channels, map.height, map.width}, map.layout,
                               p.scalar_type(), p);
  if (out.numel() == 0) return out;
  const Tensor gradients = keeps ? source : empty_in_layout(samples, Layout::planar, dtype, p);
  dispatch_float(op, p.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulate<T>;
    const Weights<A> weight_of{weights, tiles.batch, mean};
    dispatch_kind(op, kind, [&](auto loss_type) {  // an unknown word is refused either way
      if (keeps) return;
      const Outcome<A> to{nullptr, nullptr, mutable_data<A>(source), mutable_data<A>(gradients)};
      compare<typename decltype(loss_type)::type, T>(p_side, z_side, tiles, weight_of, to);
    });
    const std::vector<A> scales = scales_of_samples(data<A>(upstream), mean, tiles, weight_of);
    gather_maps(ScaledGradients<A>{data<A>(gradients), scales.data()}, p_side.boxes, tiles.batch,
                tiles.channels, map.height, map.width, tiles.rows, tiles.columns, map.layout,
                mutable_data<T>(out));
  });
  return out;
}

}  // namespace
}  // namespace densesiam

DENSESIAM_IMPL(CPU, m) {
  m.impl("overlap_similarity", TORCH_BOX(&densesiam::overlap_similarity));
  m.impl("overlap_similarity_backward", TORCH_BOX(&densesiam::overlap_similarity_backward));
}
