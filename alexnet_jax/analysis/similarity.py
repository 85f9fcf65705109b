"""Similarity of representations: linear CKA, and representational similarity analysis (RSA).

A representation is the activations of a layer, of a tower or of a run for the same images, as a matrix [image, unit].
The measures depend on the units through sums over all of them, so layers, towers and runs of any width can be compared.
CKA is invariant to orthogonal transforms of the units, to translations, and to isotropic scaling. RSA is invariant to
permutations of the units, and to scaling and shifting all activations of an image.

Each measure reduces a representation to a unit vector, its signature. The similarity of two representations is the
inner product of their signatures, and that of many is a product of two matrices.
"""

import numpy as np
import scipy.stats

MIN_IMAGES = 4  # for all measures
BLOCK_UNITS = 2**15  # units that are converted to double precision at a time


def linear_cka(x: np.ndarray) -> np.ndarray:
  """Computes the signature of linear centred kernel alignment (Kornblith et al. 2019), in its standard form.

  CKA(K, L) = <HKH, HLH> / (|HKH| |HLH|), with the Gram matrices K = XX' and L = YY' and the centring matrix H. With few
  images and many units it is close to 1 even for independent representations; `unbiased_cka` corrects that.

  Args:
    x: [image, ...] float.

  Returns:
    [image * image] float64.
  """
  return _unit(_gram(x, 'unit'))


def unbiased_cka(x: np.ndarray) -> np.ndarray:
  """Computes the signature of linear CKA with the unbiased estimator of HSIC (Song et al. 2012, Nguyen et al. 2021).

  The diagonal of the Gram matrices is set to zero, and they are centred such that the inner product of two of them is
  n (n - 3) times the estimator. Independent representations have a similarity of about 0, which can be negative.

  Args:
    x: [image, ...] float, with 4 images or more.

  Returns:
    [image * image] float64.
  """
  gram, n = _gram(x, 'unit'), len(x)
  np.fill_diagonal(gram, 0)
  rows = gram.sum(axis=0) / (n - 2)
  centred = gram - rows - rows[:, None] + gram.sum() / ((n - 1) * (n - 2))
  np.fill_diagonal(centred, 0)
  return _unit(centred)


def rsa(x: np.ndarray) -> np.ndarray:
  """Computes the signature of representational similarity analysis (Kriegeskorte et al. 2008).

  The dissimilarity of two images is 1 minus the correlation of their activations over the units. The similarity of two
  representations is Spearman's correlation of the dissimilarities of all pairs of images, that is, the correlation of
  their ranks.

  Args:
    x: [image, ...] float, with 3 images or more.

  Returns:
    [pair of images] float64.
  """
  covariances = _gram(x, 'image')
  deviations = np.sqrt(np.diag(covariances))
  deviations[deviations == 0] = 1  # an image to which all units respond equally is correlated with no other
  dissimilarities = 1 - covariances / deviations / deviations[:, None]
  ranks = scipy.stats.rankdata(dissimilarities[np.triu_indices_from(dissimilarities, 1)])
  return _unit(ranks - ranks.mean())


# The measures by name, and their titles in figures.
MEASURES = {'cka': linear_cka, 'unbiased_cka': unbiased_cka, 'rsa': rsa}
TITLES = {'cka': 'linear CKA', 'unbiased_cka': 'linear CKA, unbiased', 'rsa': 'RSA, Spearman correlation'}


def similarity(x: np.ndarray, y: np.ndarray, measure: str = 'unbiased_cka') -> float:
  """Computes the similarity of two representations of the same images.

  Args:
    x: activations [image, ...] float.
    y: activations [image, ...] float, with any other axes.
    measure: name in `MEASURES`.

  Returns:
    At most 1; NaN if all images have the same activations in one of them.
  """
  return float(MEASURES[measure](x) @ MEASURES[measure](y))


def _gram(x, centred):
  """Returns the inner products of images [image, image] float64, after subtraction of each 'unit' or 'image' mean."""
  x = x.reshape(len(x), -1)
  mean = x.mean(axis=('unit', 'image').index(centred), dtype=np.float64, keepdims=True)
  mean = np.broadcast_to(mean, x.shape)
  gram = np.zeros((len(x), len(x)))
  for start in range(0, x.shape[1], BLOCK_UNITS):
    block = slice(start, start + BLOCK_UNITS)
    differences = x[:, block] - mean[:, block]
    gram += differences @ differences.T
  return gram


def _unit(signature):
  """Flattens a signature and divides it by its norm; that of equal images is NaN."""
  norm = np.linalg.norm(signature)
  return signature.reshape(-1) / (norm or np.nan)
