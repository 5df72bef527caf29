// What the host code of pixel_similarity and overlap_similarity shares.
#pragma once

#include "../pixel_similarity.cuh"
#include "pixelwise.h"

namespace densesiam {

// Calls body(Type<Loss>{}) with the loss of that name.
template <class A, class Body>
void dispatch_kind(const char* op, const std::string& kind, const Body& body) {
  check(kind == "cosine" || kind == "cross_entropy", op,
        ": kind must be one of cosine, cross_entropy, got '", kind, "'");
  if (kind == "cosine") {
    body(Type<Cosine<A>>{});
  } else {
    body(Type<CrossEntropy<A>>{});
  }
}

// Runs a forward on two sources; fills the loss (of every pixel, or their mean) and statistics.
template <class Loss, class P, class Z, class A = typename P::A>
void run_similarity(P p, Z z, const std::optional<Tensor>& weight, const PixelShape& shape,
                    bool mean, const Tensor& loss, const Tensor& statistics, cudaStream_t stream) {
  const A* weights = optional_data<A>(weight);
  const Sharing<P> sharing(shape);
  LossOutput<A> out{mutable_data<A>(loss), nullptr, mutable_data<A>(statistics)};
  if (!mean) {
    launch_pixel_similarity<Loss>(p, z, weights, shape, sharing, out, stream);
    return;
  }
  const Tensor parts = torch::stable::new_empty(loss, {std::int64_t(sharing.blocks)});
  out.losses = nullptr;
  out.parts = mutable_data<A>(parts);
  launch_pixel_similarity<Loss>(p, z, weights, shape, sharing, out, stream);
  launch_mean<A>(out.parts, sharing.blocks, nullptr, weights, shape, mutable_data<A>(loss), stream);
}

}  // namespace densesiam
